"""The reference model and ours, of true layer sizes, with the same random weights in memory once (and once packed)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers

from idefics.config import Idefics2Config
from idefics.config.presets import preset
from idefics.linears.packing import finish_packing, pack
from idefics.model.base import VisionLanguageModel
from idefics.weights.families import build_on_meta, family_of

__all__ = ["both", "config", "difference"]


def config(
    *, vision_layers: int | None = None, text_layers: int | None = None, vocabulary: int | None = None
) -> Idefics2Config:
    """Idefics2-8B with fewer layers or a smaller vocabulary, every layer of its true size."""
    whole = preset("idefics2-8b")
    assert isinstance(whole, Idefics2Config)
    vision, text = whole.vision_config, whole.text_config
    vision = replace(vision, num_hidden_layers=vision_layers or vision.num_hidden_layers)
    text = replace(text, num_hidden_layers=text_layers or text.num_hidden_layers, vocab_size=vocabulary or text.vocab_size)
    image = whole.image_token_id if vocabulary is None else vocabulary - 1
    return replace(whole, vision_config=vision, text_config=text, image_token_id=image)


def both(made: Idefics2Config, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> tuple[Any, VisionLanguageModel]:
    """The reference with SDPA, and ours as `idefics.load` would give it, once it has been used."""
    torch.manual_seed(seed)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    reference = transformers.Idefics2ForConditionalGeneration(transformers.Idefics2Config(**made.to_dict())).eval()
    torch.set_default_dtype(kept)
    reference.set_attn_implementation("sdpa")
    table = family_of(made).table
    ours = build_on_meta(made)
    named = {str(table.ours(name)): value for name, value in reference.state_dict().items()}
    ours.load_state_dict(named, assign=True)
    return reference, finish_packing(pack(ours))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Root mean square of the difference, relative to that of `theirs`."""
    return float((ours.float() - theirs.float()).square().mean().sqrt() / theirs.float().square().mean().sqrt())
