"""Bad input: one clear line on stderr, nothing on stdout, exit code 1."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import idefics
from idefics.api import Idefics
from idefics.errors import ImageError
from idefics.weights.files import EMBEDDED


def refused(ran: Any, *said: str) -> None:
    assert ran.code == 1, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    for word in said:
        assert word in ran.err


def _bomb(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def _truncated(path: Path) -> None:
    Image.effect_noise((200, 200), 60).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))  # a socket's name may not be long


def _endless_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: path.write_text("hello"), "not an image"),
        (lambda path: path.write_bytes(b""), "empty"),
        (_truncated, "truncated"),
        (_bomb, "limit"),
        (os.mkfifo, "did not end within 0.05 s"),
        (lambda path: path.symlink_to("/dev/zero"), "more bytes than the limit"),
        (lambda path: path.symlink_to("/proc/self/status"), "not an image"),
        (lambda path: path.symlink_to("/dev/null"), "empty"),
        (_socket, "cannot be read"),
        (_endless_hole, "bytes, over the limit of 1073741824"),
    ],
    ids=["missing", "folder", "text", "empty", "truncated", "bomb", "pipe", "zero", "proc", "null", "socket", "hole"],
)
def test_images(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], said: str) -> None:
    monkeypatch.setattr("idefics.config.whole_files.PATIENCE", 0.05)
    path = tmp_path / "image.jpg"
    make(path)
    # No such model either: what is wrong with images is said before any model is looked for.
    refused(run("generate", "-m", tmp_path / "none", "--image", path, "What?"), "image.jpg", said)


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000)])
def test_extreme_images_are_answered(run: Any, tiny_checkpoint: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "extreme.png"
    Image.new("RGB", size, "red").save(path)
    words = ["generate", "-m", tiny_checkpoint, "--image", path, "What?", "--max-new-tokens", "2"]
    assert run(*words).code == 0
    refused(run(*words, "--split"), f"{size[0]}x{size[1]}", "split")


def test_placeholders(run: Any, tiny_checkpoint: Path, picture: Path) -> None:
    ran = run("generate", "-m", tiny_checkpoint, "--raw", "--image", picture, "a <image> and <image>")
    refused(ran, "2 image placeholder(s)", "1 image(s)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top-p", "2"], "top_p must be from 0 to 1, not 2"),
        (["--num-beams", "2", "--top-k", "3"], "num_beams=2 contradicts"),
        (["--n", "2"], "same"),
        (["--num-beams", "2", "--temperature", "0.5"], "num_beams=2 contradicts"),
        (["--dtype", "int3"], "int3"),
        (["--device", "nowhere"], "nowhere"),
        (["--device", "cpu", "--device-map", "auto"], "contradict"),
        (["--device-map", "{"], "JSON"),
        (["--max-new-tokens", "100000"], "512 positions"),
        (["--revision", "v2"], "revision"),
    ],
)
def test_options(run: Any, tiny_checkpoint: Path, words: list[str], said: str) -> None:
    refused(run("generate", "-m", tiny_checkpoint, "What?", *words), said)


@pytest.fixture
def broken(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, folder)
    return folder


def _config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_sinks"] = 4
    (folder / "config.json").write_text(json.dumps(config))


def _shard(folder: Path) -> None:
    shutil.rmtree(folder)
    from fakes import tiny_config, tiny_processor
    from idefics.weights.create import create_checkpoint

    tiny_processor().save_pretrained(folder.parent / "tokenizer")
    create_checkpoint(tiny_config(), folder, tokenizer=folder.parent / "tokenizer", max_shard_bytes=100_000)
    (folder / "model-00002-of-00004.safetensors").unlink()


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _garble(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"#" * 5000 + path.read_bytes()[5008:])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_config, "attention_sinks"),
        (_shard, "model-00002-of-00004.safetensors"),
        (_cut, "truncated"),
        (_garble, "corrupt"),
        (_pickle, "pickle"),
        (_missing_tensor, "lm_head.weight"),
        (_nan, "NaN"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
    ],
)
def test_checkpoints(run: Any, broken: Path, spoil: Callable[[Path], Any], said: str) -> None:
    spoil(broken)
    refused(run("generate", "-m", broken, "What?", "--max-new-tokens", "2"), said)


def test_models_that_are_not_there(run: Any, tmp_path: Path) -> None:
    refused(run("generate", "-m", tmp_path / "none", "What?"), "no folder")
    refused(run("generate", "-m", "someone/no-such-model", "--offline", "What?"), "someone/no-such-model", "offline")
    refused(run("info", tmp_path / "idefics2-8b"), "no folder")
    refused(run("plan", tmp_path / "idefics2-8b"), "no preset")
    refused(run("plan", "someone/unknown"), "no preset")
    refused(run("init", "unknown", tmp_path / "out"), "idefics2-nano")
    refused(run("download", tmp_path), "Hub id")


def test_out_of_memory(run: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Idefics, "stream", fails)
    refused(run("generate", "-m", tiny_checkpoint, "What?"), "out of memory", "--max-image-size", "--no-split")


def test_base_models_have_no_chat(run: Any, tmp_path: Path) -> None:
    from fakes import write_tiny_checkpoint

    base = write_tiny_checkpoint(tmp_path, end_of_utterance=False)
    refused(run("chat", "-m", base, stdin="hello\n"), "no chat template")
    assert run("generate", "-m", base, "hello", "--max-new-tokens", "2").code == 0


def test_an_image_from_a_pipe(run: Any, tmp_path: Path, picture: Path) -> None:
    """As a shell's `<(command)` hands it over."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(picture.read_bytes()))
    writer.start()
    try:
        assert run("generate", "--image", path, "What?", "--max-new-tokens", "1").code == 0
    finally:
        writer.join()


def test_unknown_keys_of_a_config(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "some_new_key": None}))
    assert run("generate", "-m", folder, "What?", "--max-new-tokens", "1").err == ""
    (folder / "config.json").write_text(json.dumps({**config, "attention_sinks": 4}))
    refused(run("generate", "-m", folder, "What?"), "attention_sinks = 4", "--allow-unknown-config")
    ran = run("generate", "-m", folder, "What?", "--max-new-tokens", "1", "--allow-unknown-config")
    assert ran.code == 0
    assert ran.err.startswith("warning: ")
    assert "did not say config.attention_sinks = 4" in ran.err
    assert json.loads(run("info", folder, "--json").out)["not understood"] == {"config.attention_sinks": "4"}
    assert "as if the files did not say config.attention_sinks = 4" in run("plan", folder).err
    monkeypatch.setattr("idefics.selftest.verify", lambda *_, **__: [])
    words = ("verify", folder, "--allow-unknown-config")
    assert "config.attention_sinks = 4" in run(*words).out
    assert json.loads(run(*words, "--json").out)["unknown_config"] == {"config.attention_sinks": 4}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "generation_config.json"])
def test_unknown_keys_of_the_files_beside_it(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    raw = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**raw, "sharper": 4}))
    refused(run("generate", "-m", folder, "What?"), str(folder / name), "sharper = 4", "--allow-unknown-config")
    ran = run("generate", "-m", folder, "What?", "--max-new-tokens", "1", "--allow-unknown-config")
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert ran.err.startswith("warning: ")
    assert f"did not say {name}: sharper = 4" in ran.err
    monkeypatch.setattr("idefics.selftest.verify", lambda *_, **__: [])
    words = ("verify", folder, "--allow-unknown-config")
    assert f"{name}: sharper = 4" in run(*words).out
    assert json.loads(run(*words, "--json").out)["unknown_config"] == {f"{name}: sharper": 4}
    if name == "preprocessor_config.json":  # what is only looked at is not refused
        assert json.loads(run("info", folder, "--json").out)["not understood"] == {f"{name}: sharper": "4"}
        assert f"as if the files did not say {name}: sharper = 4" in run("plan", folder).err
        return
    (folder / name).write_text(json.dumps({**raw, "penalty_alpha": 0.6}))  # known, and not offered
    refused(run("generate", "-m", folder, "What?", "--allow-unknown-config"), "penalty_alpha = 0.6", "does not offer")


def test_half_of_the_weights_never_arrived(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(size // 2)
        file.truncate(size)
    ran = run("generate", "-m", folder, "What?", "--max-new-tokens", "1")
    assert ran.err.startswith("warning: ")
    assert "hold zeros where numbers should be" in ran.err
    assert "`idefics verify`" in ran.err


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_a_refused_picture_is_called_by_its_name_on_every_surface(run: Any, tmp_path: Path, mode: str) -> None:
    thin, well = tmp_path / "thin.png", tmp_path / "well.png"
    Image.new(mode, (300, 1)).save(thin)  # cannot be cut in four
    Image.new(mode, (300, 300)).save(well)
    said = f"{thin}: an image of 300x1 pixels cannot be split"
    refused(run("generate", "--split", "--image", well, "--image", thin, "What?"), said)
    refused(run("chat", "--split", "--image", thin, stdin="What?\n"), said)
    model = idefics.load(split=True)
    for pictures in ([well, str(thin)], [Image.open(well), Image.open(thin)], [well, idefics.load_image(str(thin))]):
        with pytest.raises(ImageError, match=re.escape(said)):
            model.generate("What?", images=pictures)
    processor = idefics.AutoProcessor.from_pretrained(EMBEDDED, do_image_splitting=True)
    with pytest.raises(ImageError, match=re.escape(said)):
        processor(text="<image><image>What?", images=[idefics.load_image(str(well)), idefics.load_image(str(thin))])
