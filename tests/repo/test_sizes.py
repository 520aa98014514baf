"""Small files, named by nouns."""

from __future__ import annotations

import warnings

import pytest

from repo.repository import ROOT, SRC

SOFT, HARD = 400, 600
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "tools", "stuff"}


def test_files_are_small() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(SRC.rglob("*.py"))}
    assert len(lengths) > 50
    long = {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > SOFT}
    told = ", ".join(f"{path} {count}" for path, count in long.items())
    if long:
        with warnings.catch_warnings():  # seen in the output of a failure, fails nothing by itself
            warnings.simplefilter("default")
            warnings.warn(f"over {SOFT} lines: {told}", stacklevel=1)
    assert not any(count > HARD for count in long.values()), f"over {HARD} lines is too long (over {SOFT}: {told})"


@pytest.mark.parametrize("folder", ["src", "tests", "recipes", "benchmarks"])
def test_no_file_is_named_for_nothing(folder: str) -> None:
    found = [path for path in (ROOT / folder).rglob("*.py") if path.stem in NAMELESS]
    assert not found
