"""The messages that the page on troubleshooting quotes are those that the package says."""

from __future__ import annotations

import ast
import re
from functools import cache

from repo.repository import ROOT, modules

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.compile(r"^\*\*`(.+)`\*\*$", re.MULTILINE)


@cache
def said() -> str:
    """Every text of the package, with `…` for what is filled in."""
    texts = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return "\n".join(sorted(texts))


def test_every_message_is_one_of_ours() -> None:
    quoted = QUOTED.findall(PAGE.read_text(encoding="utf-8"))
    assert len(quoted) >= 25
    assert len(set(quoted)) == len(quoted)
    known = said()
    assert [message for message in quoted if message not in known] == []


def test_a_changed_message_would_be_seen() -> None:
    known = said()
    assert "is damaged or truncated: …" in known
    assert "is damaged or shortened: …" not in known
