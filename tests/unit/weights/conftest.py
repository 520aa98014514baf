from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import build

from idefics.weights.save import save_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny model and gives its folder."""

    def make(*, dtype: torch.dtype = torch.float32, tied: bool = False, max_shard_bytes: int = 10**9) -> Path:
        folder = tmp_path / "checkpoint"
        save_model(build(dtype=dtype, tied=tied), folder, max_shard_bytes=max_shard_bytes)
        return folder

    return make
