from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import TINY, build

from idefics.config.presets import preset
from idefics.weights.families import build_on_meta
from idefics.weights.footprint import kv_bytes_per_token, parameter_counts


def test_idefics2_8b_is_counted_without_being_built() -> None:
    config = preset("HuggingFaceM4/idefics2-8b")
    counts = parameter_counts(config)
    assert counts == {"vision": 417792240, "connector": 743219200, "text": 7110672384, "head": 131084288}
    assert kv_bytes_per_token(config, torch.float16) == 2 * 32 * 8 * 128 * 2


@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_those_of_the_model(tied: bool) -> None:
    counts = parameter_counts(replace(TINY, tie_word_embeddings=tied))
    assert sum(counts.values()) == sum(p.numel() for p in build(tied=tied).parameters())
    assert counts["head"] == (0 if tied else 40 * 16)


def test_a_model_on_meta_has_no_storage() -> None:
    assert all(p.is_meta and p.requires_grad for p in build_on_meta(preset("idefics2-8b")).parameters())
