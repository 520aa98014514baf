"""The site of docs/: every page can be found from the others, and what checks it builds it strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from repo.repository import ROOT


def pages(nav: Any) -> Iterator[str]:
    """The files of a navigation, however deep."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(entry)


def test_every_page_is_in_the_navigation_once() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    docs = ROOT / site["docs_dir"]
    written = sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    assert sorted(pages(site["nav"])) == written


def test_the_site_is_built_strictly() -> None:
    assert "zensical build --clean --strict" in (ROOT / "scripts" / "check").read_text(encoding="utf-8")
