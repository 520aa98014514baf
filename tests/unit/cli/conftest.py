from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process."""

    def go(*arguments: str | Path, stdin: Any = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return go


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image in a folder and under a name with spaces."""
    path = tmp_path / "my photos" / "a red one.png"
    path.parent.mkdir()
    Image.effect_noise((90, 60), 60).convert("RGB").save(path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "plain.png"
    Image.effect_noise((60, 90), 60).convert("RGB").save(path)
    return path
