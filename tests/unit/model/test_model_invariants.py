"""The invariants on the model as training leaves it: other seeds, odd configurations, tied embeddings."""

from __future__ import annotations

import pytest
import torch

import invariants
from fakes import tiny_idefics


@pytest.mark.parametrize("backend", ["sdpa", "reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "text",
    [
        dict(sliding_window=None),
        dict(sliding_window=1),
        dict(sliding_window=7),
        dict(num_key_value_heads=1),
        dict(num_key_value_heads=4),
        dict(head_dim=6, num_hidden_layers=1),
        dict(rope_theta=500.0),
    ],
    ids=lambda text: "-".join(f"{name}={value}" for name, value in text.items()),
)
def test_decoder(text, dtype, backend):
    loaded = tiny_idefics(dtype=dtype, backend=backend, std=0.15, seed=3, **text)
    invariants.assert_batch_matches_single(loaded)
    invariants.assert_cache_matches_full(loaded)


@pytest.mark.parametrize("backend", ["sdpa", "reference", "blocked"])
@pytest.mark.parametrize("side", [3, 12, 27])
def test_vision(side, backend):
    loaded = tiny_idefics(backend=backend, std=0.15, side=side)
    invariants.assert_padding_is_inert(loaded)
    invariants.assert_images_isolated(loaded)
    invariants.assert_split_parity(loaded)
