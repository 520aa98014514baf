from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import idefics
from idefics.api import Idefics
from idefics.engine.engine import Engine

Tiny = Path


@pytest.fixture
def model(tiny_checkpoint: Path) -> Idefics:
    return idefics.load(tiny_checkpoint)


def test_the_answer_and_nothing_else_is_on_stdout(run: Any, tiny_checkpoint: Path, photo: Path, model: Idefics) -> None:
    words = ["generate", "-m", tiny_checkpoint, "--image", photo, "What is it?", "--max-new-tokens", "6"]
    expected = model.generate("What is it?", [str(photo)], max_new_tokens=6) + "\n"
    for more in ([], ["--no-stream"]):
        ran = run(*words, *more)
        assert (ran.code, ran.out, ran.err) == (0, expected, "")


def test_json(run: Any, tiny_checkpoint: Path, photo: Path, picture: Path) -> None:
    ran = run(
        "generate", "-m", tiny_checkpoint, "-i", photo, "-i", f"file://{picture}", "--json", "--split", "Hm?",
        "--max-new-tokens", "3",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    report = json.loads(ran.out)
    assert set(report) == {"answer", "finish", "model", "dtype", "images", "tokens", "seconds"}
    assert report["finish"] == "length"
    assert report["model"] == str(tiny_checkpoint)
    assert report["images"] == [
        {"source": str(photo), "width": 90, "height": 60}, {"source": str(picture), "width": 60, "height": 90}
    ]  # fmt: skip
    assert report["tokens"]["image"] == 2 * 5 * 4
    assert report["tokens"]["answer"] == 3
    assert report["tokens"]["prompt"] > 40
    assert all(seconds > 0 for seconds in report["seconds"].values())


def test_several_answers(run: Any, tiny_checkpoint: Path) -> None:
    ran = run(
        "generate",
        "-m",
        tiny_checkpoint,
        "Hm?",
        "--n",
        "3",
        "--temperature",
        "1",
        "--seed",
        "1",
        "--max-new-tokens",
        "2",
        "--json",
    )
    report = json.loads(ran.out)
    assert [answer["finish"] for answer in report["answers"]] == ["length"] * 3
    assert report["tokens"]["answer"] == 6
    beams = run("generate", "-m", tiny_checkpoint, "Hm?", "--num-beams", "2", "--max-new-tokens", "2")
    assert beams.code == 0
    assert beams.out


def test_a_checkpoint_that_asks_for_beams_itself(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beams"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_beams": 2, "num_return_sequences": 2}))
    ran = run("generate", "-m", folder, "Hm?", "--max-new-tokens", "2")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "\n".join(idefics.load(folder).generate("Hm?", max_new_tokens=2)) + "\n"


def test_question_from_stdin(run: Any, tiny_checkpoint: Path, model: Idefics) -> None:
    ran = run("generate", "-m", tiny_checkpoint, "-", "--max-new-tokens", "2", stdin="What?")
    assert ran.out == model.generate("What?", max_new_tokens=2) + "\n"
    assert run("generate", "-m", tiny_checkpoint, "-", stdin=" \n").err == "error: the question is empty\n"


def test_raw_continues_the_text(run: Any, tiny_checkpoint: Path, picture: Path, model: Idefics) -> None:
    ran = run("generate", "-m", tiny_checkpoint, "--raw", "-i", picture, "In <image> the", "--max-new-tokens", "3")
    assert ran.out == model.generate("In <image> the", str(picture), raw=True, max_new_tokens=3) + "\n"
    refused = run("generate", "-m", tiny_checkpoint, "-i", picture, "In <image> the", "--max-new-tokens", "3")
    assert (refused.code, refused.out) == (1, "")
    assert "the question holds <image>" in refused.err


def test_ctrl_c_ends_the_line_and_exits_with_130(run: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_: Any, **__: Any) -> Iterator[str]:
        yield "so"
        raise KeyboardInterrupt

    monkeypatch.setattr(Idefics, "stream", stream)
    ran = run("generate", "-m", tiny_checkpoint, "Hm?")
    assert (ran.code, ran.out) == (130, "so\n")


def test_threads(run: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    words = ["generate", "-m", tiny_checkpoint, "Hm?", "--max-new-tokens", "1"]
    assert run(*words).code == 0
    assert chosen == []
    assert run(*words, "--threads", "3").code == 0
    assert chosen == [3]
    assert run(*words, "--threads", "0").code == 2


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_guesses_take_fewer_passes_to_the_same_answer(
    run: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    passes = 0
    honest = Engine.step

    def counting(self: Engine) -> Any:
        nonlocal passes
        passes += 1
        return honest(self)

    monkeypatch.setattr(Engine, "step", counting)
    question = "it is red and blue and " * 6
    words = [command, "-m", tiny_checkpoint, "--max-new-tokens", "60", *([question] if command == "generate" else [])]
    found = []
    for more in ([], ["--prompt-lookup", "4"]):
        passes = 0
        ran = run(*words, *more, stdin="" if command == "generate" else question + "\n")
        assert (ran.code, ran.err) == (0, "")
        found.append((ran.out, passes))
    (plain, many), (guessed, few) = found
    assert guessed == plain
    assert few < many


def test_guesses_are_not_for_beams(run: Any, tiny_checkpoint: Path) -> None:
    ran = run("generate", "-m", tiny_checkpoint, "Hm?", "--prompt-lookup", "3", "--num-beams", "2")
    assert ran.code == 1
    assert "num_beams=2 contradicts prompt_lookup_num_tokens=3" in ran.err
    assert run("generate", "-m", tiny_checkpoint, "Hm?", "--prompt-lookup", "-1").code == 1
