"""What the repository's tests look at: its root, its files, the modules of the package, the blocks of its documents."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "idefics"
README = ROOT / "README.md"

OPTIONAL = {"idefics.model.layers.paged_kernel": "triton"}
"""Modules that import what need not be installed; whoever imports them has looked for it."""

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- *run *-->\s*\Z")


def documents() -> list[Path]:
    """README, CHANGELOG, CONTRIBUTING and docs: those that are there."""
    return [
        *(path for name in ("README", "CHANGELOG", "CONTRIBUTING") if (path := ROOT / f"{name}.md").is_file()),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def tracked_files() -> list[Path]:
    """Every file of the repository, those not yet added too, but none that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def importable(module: str) -> bool:
    """Whether what a module of ours imports is installed here."""
    return module not in OPTIONAL or find_spec(OPTIONAL[module]) is not None


def modules() -> dict[str, ast.Module]:
    """Dotted name to syntax tree, of every module of the package."""
    return dict(_modules())


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SRC.rglob("*.py")):
        parts = ["idefics", *path.relative_to(SRC).with_suffix("").parts]
        yield ".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `marked` if `<!-- run -->` stands before it."""

    document: Path
    line: int
    language: str
    text: str
    marked: bool

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    whole = document.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(whole):
        before = whole[: match.start()]
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        language = match["language"].strip()
        found.append(Block(document, before.count("\n") + 1, language, text, bool(_MARK.search(before))))
    return found


def prose(document: Path) -> str:
    """A document without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", document.read_text(encoding="utf-8")))
