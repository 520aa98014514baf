"""`idefics generate --shots`: what is refused before a model is loaded, and where answers of base models end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import write_tiny_checkpoint
from idefics.api import Idefics
from idefics.cli import generate as command


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    file = tmp_path / "shots.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    return file


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        ("{", (), "neither a JSON list nor"),
        ("[]", (), "holds no examples"),
        ('{"question": "a", "answer": "b"}', ("--shots-by", "best"), "not 'best'"),
        ('{"question": "a", "answer": "b"}', ("--shots-by", "nearest"), "the question has none"),
    ],
)
def test_what_is_wrong_is_told_before_loading(
    run: Any, shots: Path, content: str, more: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(command, "open_model", load)
    shots.write_text(content)
    ran = run("generate", "--shots", shots, *more, "What?")
    assert (ran.code, ran.out) == (1, "")
    assert said in ran.err


def test_an_answer_of_a_base_model_ends_with_its_line(
    run: Any, shots: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def stream(_: Idefics, __: str, ___: Any, **options: Any) -> Iterator[str]:
        asked.append(options.get("stop"))
        yield "2"

    monkeypatch.setattr(Idefics, "stream", stream)
    base = write_tiny_checkpoint(tmp_path / "base", end_of_utterance=False)
    for folder, more in ((base, ()), (base, ("--stop", "x")), (tiny_checkpoint, ())):
        assert run("generate", "-m", folder, "--shots", shots, *more, "What?").code == 0
    assert run("generate", "-m", base, "What?").code == 0
    assert asked == [["\n"], ["x"], None, None]
