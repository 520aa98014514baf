"""No file tells of the machine it was written on, or of work put off."""

from __future__ import annotations

import re

from repo.repository import ROOT, tracked_files

MACHINE = re.compile(r"(?<![\w.~])/(?:home|Users|root|work|mnt|workspace|tmp/w)/[\w.-]")
PUT_OFF = re.compile(r"\b(?:T[O]DO|FIX[M]E|X[X]X)\b")
# A person's home in an example of what users type.
EXAMPLE = re.compile(r"/(?:home|Users)/(?:me|you|user|ada|someone)/")


def found(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.strip()[:120] for line in lines if PUT_OFF.search(line) or MACHINE.search(EXAMPLE.sub("", line))]


def test_texts_are_clean() -> None:
    files = tracked_files()
    assert len(files) > 100
    wrong = {}
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if lines := found(text):
            wrong[str(path.relative_to(ROOT))] = lines
    assert not wrong


def test_what_is_looked_for_is_found() -> None:
    for text in ("see /ho@me/x/y", "open('/wo@rk/a')", "# TO@DO: later", "/tm@p/w/c/bin"):
        assert found(text.replace("@", "")), text
    for text in ("https://a.b/home/x", "~/work/a", "a/work/b", "/home/me/photo.jpg", "todo list"):
        assert not found(text), text


def test_files_end_with_one_newline_and_have_no_tabs_or_trailing_spaces() -> None:
    wrong = []
    for path in tracked_files():
        if path.suffix not in (".py", ".md", ".toml", ".txt") and path.parent != ROOT / "scripts":
            continue
        text = path.read_text(encoding="utf-8")
        if text and (
            not text.endswith("\n") or text.endswith("\n\n") or "\t" in text or re.search(r"[ \t]$", text, re.MULTILINE)
        ):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong
