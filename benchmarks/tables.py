"""Puts the newest results of every kind into docs/performance.md, between the marks that name them.

    python benchmarks/tables.py

A mark is `<!-- results: decode -->`; the table ends at `<!-- end -->`. A test holds the page against the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def newest(what: str) -> dict[str, Any]:
    """The result file of this kind with the latest date; of one day, that of the most threads."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{what}_*.json"))]
    return max(every, key=lambda document: (document["date"], document["threads"]))


def table(document: dict[str, Any]) -> str:
    """One row per case, and what it ran on."""
    rows = ["| work | ours | transformers | ratio | target | of the limit |", "|---|---:|---:|---:|---:|---:|"]
    for case in document["cases"]:
        ours, theirs = case["ours"]["median"], case["theirs"] and case["theirs"]["median"]
        cells = [
            case["name"],
            duration(ours),
            duration(theirs) if theirs else "",
            f"{case['ratio']:.2f}x" if case["ratio"] else "",
            f"{case['target']:g}x" if case["target"] else "",
            f"{100 * case['limit'] / ours:.0f} %" if case["limit"] else "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    packages = ", ".join(f"{name} {document['packages'][name]}" for name in ("torch", "transformers"))
    rows += ["", f"{document['hardware']}, {document['threads']} thread(s), {packages}, {document['date']}."]
    return "\n".join(rows) + "\n"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def filled(page: str) -> str:
    """The page with every marked table made anew."""
    return MARKED.sub(lambda mark: mark[1] + "\n" + table(newest(mark[2])) + "\n" + mark[3], page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
