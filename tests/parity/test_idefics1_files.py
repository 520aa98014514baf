"""Checkpoints of the first generation go both ways between this package and transformers: same names, same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import pair

from gated import random_batch, reference_inputs, tiny_config
from idefics import IdeficsForVisionText2Text
from idefics.weights.load import load_config

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "no resampler, gates per channel": {"use_resampler": False, "alpha_type": "vector", "qk_layer_norms": False},
    "tied": {"tie_word_embeddings": True},
    "tied, nothing added": {"tie_word_embeddings": True, "additional_vocab_size": 0},
}


@pytest.mark.parametrize("size", ["1GB", "40KB"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_both_ways(tmp_path: Path, variant: str, size: str) -> None:
    models = pair(tiny_config(**VARIANTS[variant]), seed=9)
    inputs = reference_inputs(*random_batch(5, 2))
    real = inputs["attention_mask"].bool()
    expected = models.reference(**inputs).logits[real]

    models.ours.save_pretrained(tmp_path / "ours", max_shard_size=size)
    theirs, report = transformers.IdeficsForVisionText2Text.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(theirs.eval()(**inputs).logits[real], expected, atol=1e-5, rtol=0)

    models.reference.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    ours = IdeficsForVisionText2Text.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(ours(**inputs).logits[real], expected, atol=1e-4, rtol=0)
    assert load_config(tmp_path / "ours") == load_config(tmp_path / "theirs")


@torch.inference_mode()
def test_a_wrong_name_is_seen_by_transformers(tmp_path: Path) -> None:
    """Seen to fail: the report above is not empty for a checkpoint with a wrong name in it."""
    pair(tiny_config()).ours.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"model.perceiver_resampler.latents", b"model.perceiver_resampler.latent5"))
    _, report = transformers.IdeficsForVisionText2Text.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]
    assert report["unexpected_keys"]


@pytest.mark.parametrize("name", ["idefics-9b", "idefics-80b-instruct"])
def test_parameters_are_those_of_transformers(name: str) -> None:
    from idefics.config.presets import preset
    from idefics.weights.families import build_on_meta, family_of

    config = preset(name)
    with torch.device("meta"):
        theirs = transformers.IdeficsForVisionText2Text(transformers.IdeficsConfig(**config.to_dict()))
    published = family_of(config).table.published
    ours = {published(parameter): value.shape for parameter, value in build_on_meta(config).named_parameters()}
    assert ours == {parameter: value.shape for parameter, value in theirs.named_parameters()}
