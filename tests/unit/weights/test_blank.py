"""Weights that never arrived: files of the right size with zeros in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from idefics.assets import EMBEDDED
from idefics.weights.blank import PAGE, _looks, blank_weights
from idefics.weights.load import load_model
from idefics.weights.shards import Shards

Make = Callable[..., Path]


def _wipe(path: Path, start: int, end: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(end - start))


def test_a_model_as_it_should_be_is_not_blank() -> None:
    shards = Shards(EMBEDDED)
    found = blank_weights(shards.entries.values())
    assert found.names == ()
    assert found.tensors > 50


def test_half_a_file_of_zeros_is_told_at_load_with_what_to_do(checkpoint: Make) -> None:
    folder = checkpoint()
    path = folder / "model.safetensors"
    size = path.stat().st_size
    _wipe(path, (size + 8 + int.from_bytes(path.read_bytes()[:8], "little")) // 2, size)
    with pytest.warns(UserWarning, match=r"of 48 weights hold zeros .* and \d+ more\).*download it again.*idefics verify"):
        load_model(folder)


def test_vectors_of_zeros_and_the_ends_of_a_table_are_nothing_unusual(tmp_path: Path) -> None:
    table = torch.ones(1000, 64)
    table[:20], table[-20:] = 0, 0
    save_file({"bias": torch.zeros(1, 1, 9000), "table": table}, tmp_path / "model.safetensors")
    assert blank_weights(Shards(tmp_path).entries.values()).names == ()


@pytest.mark.parametrize("at", [0.1, 0.35, 0.63, 0.9])
def test_a_piece_that_a_downloader_left_out_is_found(tmp_path: Path, at: float) -> None:
    save_file({"weight": torch.ones(1024, 16 * 1024), "other": torch.ones(64, 64)}, tmp_path / "model.safetensors")
    entry = Shards(tmp_path).entries["weight"]
    hole = 10_000_000
    begin = entry.start + int(at * (entry.bytes - hole))
    _wipe(tmp_path / "model.safetensors", begin, begin + hole)
    assert blank_weights(Shards(tmp_path).entries.values()).names == ("weight",)


def test_of_a_large_tensor_a_thousandth_is_read() -> None:
    looks = _looks(2**32)
    assert sum(length for _, length in looks) <= 2**32 / 1000
    starts = [start for start, _ in looks]
    assert all(later - earlier < 10_000_000 - PAGE for earlier, later in pairwise([0, *starts, 2**32 - PAGE]))


def test_nothing_is_said_of_a_whole_checkpoint(checkpoint: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(checkpoint())
