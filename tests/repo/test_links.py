"""Links inside the repository lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from repo.repository import ROOT, documents, prose

_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^\"']*[\"'])?\s*\)|<(?:img|a)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)",
    re.M,
)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def links(text: str) -> list[str]:
    return [next(filter(None, match)) for match in _LINK.findall(text)]


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: set[str] = set()
    text = re.sub(r"^(```+|~~~+).*?^\1", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeated = next(n for n in range(1000) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{repeated}" if repeated else slug)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def broken(document: Path, root: Path = ROOT) -> list[str]:
    wrong = []
    for link in links(prose(document)):
        if _ELSEWHERE.match(link):
            continue
        path, _, anchor = unquote(link).partition("#")
        folder = root if path.startswith("/") else document.parent
        target = folder / path.lstrip("/") if path else document
        inside = target.exists() and target.resolve().is_relative_to(root.resolve())
        if not inside or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def test_links_lead_somewhere() -> None:
    wrong = {str(document.relative_to(ROOT)): found for document in documents() if (found := broken(document))}
    assert not wrong


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` heading\n[x](https://a.b/c) [y](#a-b-heading) [z](#nowhere) ![i](gone.png 'no') `[c](code.md)`\n"
        '<img src="gone.jpg">\n[ref]: gone.md#x\n```\n[in](a-block.md)\n```\n'
    )
    assert broken(page, tmp_path) == ["#nowhere", "gone.png", "gone.jpg", "gone.md#x"]
