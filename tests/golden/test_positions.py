"""Position ids of every side length equal transformers 4.40's, the version the published checkpoints came with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from idefics.model.siglip import patch_position_ids

GOLDEN = json.loads((Path(__file__).parent / "position_buckets.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_side_length(dtype: torch.dtype) -> None:
    side = GOLDEN["side"]
    patch_position_ids.cache_clear()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        for n, buckets in GOLDEN["buckets"].items():
            rows = torch.tensor(buckets)
            assert torch.equal(patch_position_ids(int(n), 1, side=side), rows * side), f"{n} rows"
            assert torch.equal(patch_position_ids(1, int(n), side=side), rows), f"{n} columns"
    finally:
        torch.set_default_dtype(before)
        patch_position_ids.cache_clear()


def test_both_directions_together() -> None:
    rows, columns = (torch.tensor(GOLDEN["buckets"][n]) for n in ("49", "58"))
    assert torch.equal(patch_position_ids(49, 58, side=70), (rows[:, None] * 70 + columns).flatten())


def test_the_newer_formula_differs_where_it_is_known_to() -> None:
    """The mutation: i * (1 / n), as transformers 5 computes it, is not the rule."""
    boundaries = torch.arange(1 / 70, 1.0, 1 / 70)
    differing = []
    for n, buckets in GOLDEN["buckets"].items():
        fractions = (torch.arange(int(n)).float() * (1.0 / torch.tensor(int(n)))).clamp(max=1 - 1e-6)
        if torch.bucketize(fractions, boundaries, right=True).tolist() != buckets:
            differing.append(int(n))
    assert differing == [49, 58]
