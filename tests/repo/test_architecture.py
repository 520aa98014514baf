"""The page on the architecture names what there is: the stack of the contracts, files, and names in the sources."""

from __future__ import annotations

import re
import tomllib
from functools import cache

from repo.repository import ROOT, SRC, prose, tracked_files

PAGE = ROOT / "docs" / "architecture.md"


@cache
def sources() -> tuple[frozenset[str], frozenset[str]]:
    """Every path of the repository with its folders, and every word of the package's sources."""
    files = [path.relative_to(ROOT) for path in tracked_files()]
    paths = {str(path) for path in files}
    folders = {f"{folder}/" for path in files for folder in path.parents}
    words = re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in SRC.rglob("*.py")))
    return frozenset(paths | folders), frozenset(words)


def unknown(text: str) -> list[str]:
    """Code spans that are a path or a name, and are none of ours."""
    paths, words = sources()
    wrong = []
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"[\w/]+\.py|[\w/]+/", span):
            if not any(f"/{path}".endswith(f"/{span}") for path in paths):
                wrong.append(span)
        elif re.fullmatch(r"[A-Za-z_][\w.]*(?:\(.*\))?", span):
            wrong += [name for name in re.findall(r"\w+", span.partition("(")[0]) if name not in words]
    return wrong


def test_files_and_names_are_there() -> None:
    assert unknown(PAGE.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_seen() -> None:
    assert unknown("`engine/gone.py`, `Engine.add`, `gone/`, `Engine.vanish`, `a b`") == ["engine/gone.py", "gone/", "vanish"]


def test_the_stack_is_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    house = next(contract for contract in contracts if contract["name"].startswith("the house"))
    drawn = PAGE.read_text(encoding="utf-8").split("```")[1].strip().splitlines()
    floors = [re.split(r"\s{2,}", line)[0] for line in drawn]
    assert floors == [layer for layer in house["layers"] if layer != "__main__"]


def test_it_has_one_sentence_a_line() -> None:
    assert [
        line[:60] for line in prose(PAGE).splitlines() if not line.startswith("|") and re.search(r"[a-z]\. [A-Z]", line)
    ] == []
