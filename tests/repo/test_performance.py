"""Pages say what the result files say."""

from __future__ import annotations

import sys

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from tables import DOCS, PAGES, filled, newest


def test_the_page_is_made_from_the_results() -> None:
    for path in PAGES:
        page = path.read_text()
        assert "<!-- results: " in page
        assert filled(page) == page, "run python benchmarks/tables.py"


def test_the_first_screen_says_the_same() -> None:
    screen = (DOCS.parent / "README.md").read_text().split("## Ask")[0]
    for what, name, form in (
        ("vision", "five photos of five sizes", "{:.0f} s"),
        ("engine-2-layers", "second turn", "{:.1f} s"),
    ):
        case = next(case for case in newest(what)["cases"] if case["name"].startswith(name))
        row = next(row for row in screen.splitlines() if name in row)
        for cell, side in zip(row.split("|")[2:4], ("ours", "theirs"), strict=True):
            assert cell.strip().startswith(form.format(case[side]["median"])), row


def test_a_changed_number_would_be_seen() -> None:
    page = (DOCS / "performance.md").read_text()
    ratio = next(f"{case['ratio']:.2f}x" for case in newest("decode")["cases"] if case["ratio"])
    assert ratio in page
    changed = page.replace(ratio, "99.00x")
    assert filled(changed) == page != changed
