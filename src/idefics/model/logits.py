"""Logits of whole prompts, all positions at once: what training, scores of a data set and `forward` of a face begin with."""

from __future__ import annotations

from torch import Tensor

from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

__all__ = ["positions", "prompt_logits"]


def positions(mask_BT: Tensor) -> Tensor:
    """Position of each token, padding not counted (int64; 0 for padding)."""
    return (mask_BT.long().cumsum(1) - 1).clamp(min=0)


def prompt_logits(
    model: VisionLanguageModel, inputs: ModelInputs, *, latents_NLD: Tensor | None, positions_BT: Tensor | None = None
) -> Tensor:
    """Logits (B, T, V) after every token of prompts, in the model's dtype; gradients flow.

    Args:
        model: computes them.
        inputs: prompts that `model.check` has seen, padded on either side; their images are not looked at.
        latents_NLD: `encode_images` of the prompts' images; None where there is none.
        positions_BT: of the tokens; None counts those that are not padding.
    """
    mask_BT = inputs.attention_mask_BT
    hidden_BTD = model(
        inputs.input_ids_BT,
        positions_BT=positions(mask_BT) if positions_BT is None else positions_BT,
        seen=None if latents_NLD is None else model.see(inputs, latents_NLD=latents_NLD),
        key_mask_BS=None if bool(mask_BT.all()) else mask_BT.bool(),
    )
    return model.logits(hidden_BTD)
