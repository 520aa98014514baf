"""The documents' code works.

A ```bash or ```python block with `<!-- run -->` before it is run: all of a document's in order, in one temporary folder that
holds the demo's images where the repository's root has them, with the embedded model and no network. Every other block is
only read: commands and their options must exist, scripts and recipes must be there, Python must parse and name what there is.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import idefics
from idefics.cli import COMMANDS, main
from repo.repository import README, ROOT, SRC, Block, blocks, documents

BLOCKS = [block for document in documents() for block in blocks(document)]
RUNNABLE = sorted({block.document for block in BLOCKS if block.marked})
TIMEOUT = 120


def test_blocks_are_of_languages_that_are_looked_at() -> None:
    evading = [str(block) for block in BLOCKS if block.language in ("sh", "shell", "console", "zsh", "py", "python3", "pycon")]
    assert not evading, "write bash or python, so that these tests see it"
    unknown = [str(block) for block in BLOCKS if block.marked and block.language not in ("bash", "python")]
    assert not unknown, "<!-- run --> stands before what cannot be run"


def test_the_readme_has_something_to_run() -> None:
    if README.is_file():
        assert {block.language for block in BLOCKS if block.document == README and block.marked} == {"bash", "python"}


def test_every_mark_is_before_a_block() -> None:
    for document in documents():
        marks = len(re.findall(r"<!-- *run *-->", document.read_text(encoding="utf-8")))
        assert marks == sum(block.marked for block in BLOCKS if block.document == document), document


@pytest.mark.parametrize("document", RUNNABLE or [None], ids=lambda path: path.name if path else "none")
def test_marked_blocks_run(document: Path | None, tmp_path: Path) -> None:
    if document is None:
        return
    folder = tmp_path / "here"
    images = folder / (SRC / "assets" / "demo").relative_to(ROOT)
    shutil.copytree(ROOT / images.relative_to(folder), images)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "NO_COLOR": "1"}
    for block in (block for block in BLOCKS if block.document == document and block.marked):
        program = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*program, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{block} ended with {done.returncode}\n{block.text}\n{done.stdout}{done.stderr}"


def _lines(block: Block) -> list[list[str]]:
    """The simple commands of a bash block, each as words."""
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^\s*\$ ", "", line)
        for part in re.split(r"\s(?:&&|\|\||\||;)\s|;\s", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                words = words[1:]
            if words:
                commands.append(words)
    return commands


@pytest.fixture(scope="module")
def helped() -> Callable[[str], str]:
    """`idefics COMMAND --help`, asked once each."""
    import contextlib
    import io

    texts: dict[str, str] = {}

    def help_of(command: str) -> str:
        if command not in texts:
            out = io.StringIO()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
                patch.setenv("COLUMNS", "400")
                with pytest.raises(SystemExit) as end:
                    main([command, "--help"] if command else ["--help"])
            assert not end.value.code
            texts[command] = out.getvalue()
        return texts[command]

    return help_of


def _unknown(words: list[str], help_of: Callable[[str], str]) -> list[str]:
    """What an `idefics` command line names and the program does not have."""
    rest = words[1:]
    if rest and rest[0].startswith("-"):
        return [word for word in rest if word.startswith("--") and word not in help_of("")]
    if not rest:
        return []
    if rest[0] not in COMMANDS:
        return [rest[0]] if re.fullmatch(r"[a-z-]+", rest[0]) else []
    options = {word.partition("=")[0] for word in rest[1:] if re.match(r"--?[A-Za-z]", word)}
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", help_of(rest[0]))) | {"--help", "--debug"}
    return sorted(options - known)


def test_the_check_of_commands_sees_what_is_wrong(helped: Callable[[str], str]) -> None:
    assert _unknown(["idefics", "generate", "--image", "a.png", "--json", "what?"], helped) == []
    assert _unknown(["idefics", "generate", "--imgae", "a.png"], helped) == ["--imgae"]
    assert _unknown(["idefics", "genrate"], helped) == ["genrate"]
    assert _unknown(["idefics", "--version"], helped) == []


def test_commands_and_their_options_exist(helped: Callable[[str], str]) -> None:
    wrong = []
    for block in BLOCKS:
        if block.language != "bash":
            continue
        for words in _lines(block):
            if Path(words[0]).name == "idefics":
                wrong += [f"{block}: {' '.join(words)}: no {name}" for name in _unknown(words, helped)]
            files = [w for w in words if re.fullmatch(r"(?:\./)?(?:scripts|recipes|tests|benchmarks|docs|src)/[\w./-]+", w)]
            wrong += [f"{block}: no file {name}" for name in files if not (ROOT / name).exists()]
    assert not wrong


def test_python_parses_and_names_what_there_is() -> None:
    for block in BLOCKS:
        if block.language != "python":
            continue
        tree = ast.parse(block.text, str(block))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "idefics":
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{block}: {node.module} has no {missing}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "idefics":
                assert hasattr(idefics, node.attr), f"{block}: idefics has no {node.attr}"
