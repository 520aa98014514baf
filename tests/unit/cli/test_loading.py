from __future__ import annotations

import gc
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import idefics.weights.files
from idefics.cli.loading import bar, open_model
from idefics.cli.options import ImageOptions, ModelOptions


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_waits_for_the_first_word_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with bar("loading") as tell:
        assert terminal.getvalue() == ""  # a download may have a bar of its own here
        assert tell is not None
        tell(1, 2)
        tell(2, 2)
        assert "loading" in terminal.getvalue()
    with bar("loading"):
        pass


def test_a_folder_is_looked_for_once_and_keeps_its_name(
    run: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Any] = []
    resolve = idefics.weights.files.resolve

    def counting(model: Any, **options: Any) -> Path:
        looked.append(model)
        return resolve(model, **options)

    monkeypatch.setattr("idefics.api.resolve", counting)
    monkeypatch.setattr("idefics.weights.files.resolve", counting)
    name = f"{tiny_checkpoint}/../{tiny_checkpoint.name}"
    ran = run("generate", "-m", name, "a", "--max-new-tokens", "1", "--json")
    assert (ran.code, json.loads(ran.out)["model"], looked) == (0, name, [name])


class Watched:
    """Refuses torch, and notes whether Python's collector ran when it was asked for."""

    def __init__(self) -> None:
        self.collected: list[bool] = []

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torch":
            self.collected.append(gc.isenabled())
            raise ImportError(name)


def test_torch_is_imported_while_the_collector_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(sys, "meta_path", [watched, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ImportError):
        open_model(ModelOptions(), ImageOptions())
    assert watched.collected == [False]
    assert gc.isenabled()
