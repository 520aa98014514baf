"""demo, download, info, init, plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import idefics
from idefics.cli import demo as demo_command


@pytest.fixture
def questions(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "questions.json"
    turns = [{"question": "What?", "answer": "?"}, {"question": "And?", "answer": "?"}]
    path.write_text(json.dumps([{"images": [picture.name], "turns": turns}]))
    monkeypatch.setattr(demo_command, "DEMO", tmp_path)
    return path


def test_demo(run: Any, questions: Path, tiny_checkpoint: Path) -> None:
    ran = run("demo", "-m", tiny_checkpoint)
    assert ran.code == 0
    assert "plain.png" in ran.out
    assert "expected: ?" in ran.out
    assert "0 of 2 answers are right" in ran.out
    assert run("demo", "-m", tiny_checkpoint, "--check").code == 1
    talks = json.loads(questions.read_text())
    del talks[0]["turns"][1:]
    picture = str(questions.parent / "plain.png")
    talks[0]["turns"][0]["answer"] = idefics.load(tiny_checkpoint).generate("What?", picture, max_new_tokens=64).upper() + "."
    questions.write_text(json.dumps(talks))
    checked = run("demo", "-m", tiny_checkpoint, "--check")
    assert (checked.code, checked.err) == (0, "")
    assert "1 of 1 answers are right" in checked.out


@pytest.mark.parametrize("content", [None, "{}x", '[{"images": 3}]'])
def test_demo_without_its_files(run: Any, questions: Path, content: str | None) -> None:
    if content is None:
        questions.unlink()
    else:
        questions.write_text(content)
    ran = run("demo")
    assert ran.code == 1
    assert "questions.json" in ran.err
    assert ran.err.count("\n") == 1


def test_download(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(options.get("local_dir") or tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    ran = run("download", "someone/model", "--revision", "main")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'cache'}\n")
    assert asked["name"] == "someone/model"
    assert asked["revision"] == "main"
    assert "*.safetensors" in asked["allow_patterns"]
    assert run("download", "someone/model", "--to", tmp_path / "here").out == f"{tmp_path / 'here'}\n"


def test_info_of_a_folder(run: Any, tiny_checkpoint: Path) -> None:
    ran = run("info", tiny_checkpoint, "--json")
    facts = json.loads(ran.out)
    assert facts["parameters"]["total"] == sum(v for k, v in facts["parameters"].items() if k != "total")
    assert facts["dtype"] == "float32"
    assert "model.safetensors" in facts["files"]
    assert facts["tokenizer"]["<image>"] == facts["generation"]["bad_words_ids"][1][0]
    assert facts["images"] == {"shortest_edge": 24, "longest_edge": 72, "do_image_splitting": False}
    shown = run("info", tiny_checkpoint)
    assert "tokenizer.json" in shown.out
    assert shown.err == ""


def test_info_of_a_preset_and_of_a_hub_id_that_names_one(run: Any) -> None:
    facts = json.loads(run("info", "idefics2-8b", "--json").out)
    assert facts["parameters"]["total"] == 8_402_768_112
    assert facts["weights"] == "15.7 GiB"
    assert facts["KV cache per token"] == "128.0 KiB"
    assert facts["images"] == {"shortest_edge": 378, "longest_edge": 980, "do_image_splitting": True}
    ran = run("info", "nobody/idefics2-8b", "--offline", "--json")
    assert json.loads(ran.out)["parameters"] == facts["parameters"]
    assert "showing the preset" in ran.err


def test_init_then_ask(run: Any, tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "new"
    ran = run("init", "tiny-random-idefics2", out, "--tokenizer", tiny_checkpoint)
    assert ran.code == 1
    assert "<image> at 380" in ran.err
    assert not out.exists()
    from idefics.weights.create import padded_tokenizer

    config = idefics.config.presets.preset("tiny-random-idefics2")
    padded_tokenizer(tiny_checkpoint / "tokenizer.json", config).save(tmp_path / "tokenizer")
    made = run("init", "tiny-random-idefics2", out, "--tokenizer", tmp_path / "tokenizer", "--max-shard-size", "2MB")
    assert (made.code, made.out, made.err) == (0, f"{out}\n", "")
    assert len(list(out.glob("*.safetensors"))) > 1
    assert run("generate", "-m", out, "What?", "--max-new-tokens", "2").code == 0
    again = run("init", "tiny-random-idefics2", out, "--tokenizer", tmp_path / "tokenizer")
    assert "not empty" in again.err


def test_plan(run: Any, picture: Path) -> None:
    ran = run("plan", "HuggingFaceM4/idefics2-8b", "--image", "1920x1080", "--split", "--memory", "24GiB")
    assert (ran.code, ran.err) == (0, "")
    for word in ("8.40 B", "15.65", "image tokens 320 (326", "31.30", "preset", "24.0 GiB"):
        assert word in ran.out
    assert ran.out.index(" no") < ran.out.index(" yes")  # float32 does not fit, bfloat16 does
    record = json.loads(
        run(
            "plan", "idefics2-8b", "-i", picture, "-i", "100x100", "--no-split", "--dtype", "bf16", "--json", "--text", "What?"
        ).out
    )
    assert record["tokens"]["framed"] == 131
    assert list(record["bytes"]) == ["bfloat16 / float16"]
    assert record["images"][0]["seen"] == [[378, 378]]


def test_plan_of_a_folder_counts_the_text(run: Any, tiny_checkpoint: Path) -> None:
    ran = run("plan", tiny_checkpoint, "--text", "What is it?", "--image", "90x60", "--max-new-tokens", "500")
    assert "(counted)" in ran.out
    assert "does not fit the model's 512 positions" in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "none.png"], "none.png does not exist"),
        (["--image", "0x10"], "no pixels"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--dtype", "int4"], "not one of"),
        (["--memory", "much"], "neither a number of bytes"),
        (["--text", "a", "--text-tokens", "3"], "contradict"),
    ],
)
def test_plan_refuses(run: Any, words: list[str], said: str) -> None:
    ran = run("plan", "idefics2-8b", *words)
    assert (ran.code, ran.out) == (1, "")
    assert said in ran.err
