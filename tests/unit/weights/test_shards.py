from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from idefics.errors import CheckpointError, CheckpointNotFound, UnsafeCheckpoint
from idefics.weights.shards import Shards

Make = Callable[..., Path]


def _edit_index(folder: Path, edit: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def test_one_file_and_shards_hold_the_same(checkpoint: Make) -> None:
    folder = checkpoint()
    single = Shards(folder)
    tensors = {name: tensor.clone() for name, tensor in single.read(list(single.entries))}
    shutil.rmtree(folder)
    sharded = Shards(checkpoint(max_shard_bytes=20_000))
    assert len({entry.file for entry in sharded.entries.values()}) > 3
    assert sharded.entries.keys() == single.entries.keys()
    for name, tensor in sharded.read(list(sharded.entries)):
        assert torch.equal(tensor, tensors[name])
        entry = sharded.entries[name]
        assert (entry.shape, entry.dtype, entry.bytes) == (tuple(tensor.shape), "F32", tensor.nbytes)


def test_missing_shards_are_all_named(checkpoint: Make) -> None:
    folder = checkpoint(max_shard_bytes=20_000)
    shards = sorted(folder.glob("model-*"))
    for path in shards[1:3]:
        path.unlink()
    with pytest.raises(CheckpointNotFound, match=rf"lacks 2 of its {len(shards)} shards: {shards[1].name}, {shards[2].name};"):
        Shards(folder)


def test_truncated_file_is_named_with_sizes(checkpoint: Make) -> None:
    path = checkpoint() / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors is truncated: it has {size - 100} bytes, its header asks for {size};"
    ):
        Shards(path.parent)


def test_truncated_shard_is_named(checkpoint: Make) -> None:
    folder = checkpoint(max_shard_bytes=20_000)
    path = sorted(folder.glob("model-*"))[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{path.name} is truncated"):
        Shards(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or no safetensors file: it has 0 bytes"),
        (b"abc", "it has 3 bytes"),
        (struct.pack("<Q", 10**12) + b"{}", "it has 10 bytes, its header alone asks for 1000000000008"),
        (struct.pack("<Q", 4) + b"[1]]", "corrupt: its 4-byte header is not a table of tensors"),
        (struct.pack("<Q", 9) + b'{"a": 1} ', "corrupt"),
        (struct.pack("<Q", 2) + b"{}" + b"more", "corrupt: it has 14 bytes, its header asks for 10"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer.*git lfs pull"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Shards(tmp_path)


def test_header_that_lies_is_found_when_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    shards = Shards(tmp_path)
    with pytest.raises(CheckpointError, match=r"is corrupt: .*download it again"):
        list(shards.read(["a"]))


def test_index_that_names_tensors_its_shards_lack(checkpoint: Make) -> None:
    folder = checkpoint(max_shard_bytes=20_000)
    _edit_index(folder, lambda names: names.update({"model.ghost": "model-00001-of-00005.safetensors"}))
    name = sorted(path.name for path in folder.glob("model-*"))[0]
    _edit_index(folder, lambda names: names.update({"model.ghost": name}))
    with pytest.raises(
        CheckpointError, match=rf"names tensors that their shards lack: model\.ghost \({name}\); index and shards"
    ):
        Shards(folder)


def test_tensor_in_a_shard_that_the_index_leaves_out_is_seen(checkpoint: Make) -> None:
    folder = checkpoint(max_shard_bytes=20_000)
    _edit_index(folder, lambda names: names.pop("lm_head.weight") and None)
    assert "lm_head.weight" in Shards(folder).entries


@pytest.mark.parametrize(("chosen", "expected"), [("a", 1.0), ("b", 2.0)])
def test_of_a_tensor_in_two_shards_the_index_chooses(tmp_path: Path, chosen: str, expected: float) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"x": torch.tensor([value]), name: torch.tensor([0.0])}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors", "x": f"{chosen}.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert dict(Shards(tmp_path).read(["x"]))["x"].item() == expected


@pytest.mark.parametrize(
    "content", ['{"weight_map": []}', "{}", '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="has no weight_map from tensor names to file names"):
        Shards(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt", "model.pth"])
def test_pickle_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(UnsafeCheckpoint, match=rf"only pickle weights \({name}\).*run code.*convert them.*safetensors"):
        Shards(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"has no weights: neither model\.safetensors nor"):
        Shards(tmp_path)
    with pytest.raises(CheckpointNotFound, match="nowhere is not a folder"):
        Shards(tmp_path / "nowhere")


def test_header_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics.weights.shards.MAX_HEADER", 10)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 20) + b"{}" + b" " * 18)
    with pytest.raises(CheckpointError, match="a header of 20 bytes is over the limit of 10"):
        Shards(tmp_path)
