from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors import safe_open
from tiny_models import TINY, build, logits
from torch.distributed.device_mesh import DeviceMesh

from idefics.errors import CheckpointError, OptionError
from idefics.parallel.launch import Divided
from idefics.weights import save
from idefics.weights.families import FAMILIES
from idefics.weights.load import load_config, load_model
from idefics.weights.save import save_model


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file(tmp_path: Path) -> None:
    save_model(build(dtype=torch.bfloat16), tmp_path / "new" / "folder")
    assert _names(tmp_path / "new" / "folder") == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "new" / "folder" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = build()
    save_model(model, tmp_path, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    assert len(names) > 3
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert index["metadata"]["total_parameters"] == sum(p.numel() for p in model.parameters())
    for name in names:
        with safe_open(tmp_path / name, framework="pt") as file:
            assert {key for key, shard in index["weight_map"].items() if shard == name} == set(file.keys())
            size = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
            assert size <= 20_000 or len(list(file.keys())) == 1
    assert load_config(tmp_path) == TINY


@pytest.mark.parametrize(("first", "second"), [(10**9, 20_000), (20_000, 10**9), (20_000, 9_000), (20_000, 20_000)])
def test_saving_over_another_layout_leaves_one_checkpoint(tmp_path: Path, first: int, second: int) -> None:
    save_model(build(seed=1), tmp_path, max_shard_bytes=first)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_model(build(seed=2), tmp_path, max_shard_bytes=second)
    assert torch.equal(logits(load_model(tmp_path)), logits(build(seed=2)))
    other = tmp_path / "other"
    save_model(build(seed=2), other, max_shard_bytes=second)
    assert _names(tmp_path) == sorted([*_names(other), "other", "tokenizer.json"])


def test_a_mapped_model_is_saved_over_its_own_file(tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    model = load_model(tmp_path)
    save_model(model, tmp_path)
    assert torch.equal(logits(model), logits(build()))
    assert torch.equal(logits(load_model(tmp_path)), logits(build()))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", ["save_file", "write_json", "os"])
def test_an_interrupted_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: BaseException | type[BaseException], at: str
) -> None:
    save_model(build(seed=1), tmp_path, max_shard_bytes=20_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0
    owner, name = (save.os, "fsync") if at == "os" else (save, at)
    real = getattr(owner, name)

    def stop_at_the_second(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise interrupt
        real(*args, **kwargs)

    monkeypatch.setattr(owner, name, stop_at_the_second)
    expected = KeyboardInterrupt if interrupt is KeyboardInterrupt else CheckpointError
    with pytest.raises(expected, match=None if interrupt is KeyboardInterrupt else "cannot save to .*No space left"):
        save_model(build(seed=2), tmp_path, max_shard_bytes=20_000)
    assert calls == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot save to .*file"):
        save_model(build(), tmp_path / "file")


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    save_model(build(), tmp_path / "saved")
    (tmp_path / "plain").write_text("")
    assert {path.stat().st_mode for path in (tmp_path / "saved").iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_published_names_are_written(tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert all(FAMILIES["idefics2"].table.knows(name) for name in file.keys())  # noqa: SIM118


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model = build()
    with pytest.raises(OptionError, match="at least 1, not 0"):
        save_model(model, tmp_path, max_shard_bytes=0)
    model.arrangements = (Divided.over(cast(DeviceMesh, SimpleNamespace(size=lambda: 2))),)
    with pytest.raises(
        CheckpointError, match="a divided model cannot be saved; each of 2 processes holds a part; load it whole"
    ):
        save_model(model, tmp_path)
    assert _names(tmp_path) == []
