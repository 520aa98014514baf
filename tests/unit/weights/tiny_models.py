"""A tiny Idefics2 and its logits on fixed inputs."""

from __future__ import annotations

from dataclasses import replace

import torch

from idefics.config import Idefics2Config
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from idefics.weights.families import build_on_meta
from idefics.weights.init import initialize

TINY = Idefics2Config.from_dict(
    {
        "vision_config": dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
        ),
        "perceiver_config": dict(
            resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=6, num_key_value_heads=1
        ),
        "text_config": dict(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=4096,
        ),
        "image_token_id": 5,
    }
)  # fmt: skip


def build(*, dtype: torch.dtype = torch.float32, tied: bool = False, seed: int = 0) -> VisionLanguageModel:
    model = build_on_meta(replace(TINY, tie_word_embeddings=tied)).to_empty(device="cpu").to(dtype)
    if tied:
        model.lm_head.weight = model.text_model.embed_tokens.weight
    initialize(model, seed=seed, std=0.3)
    return model.eval()


@torch.no_grad()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    image = torch.linspace(-1, 1, 3 * 28 * 42).reshape(3, 28, 42)
    ids = torch.tensor([[1, 7, 5, 5, 5, 9, 30, 2]])
    inputs = ModelInputs(input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids), images_CHW=(image,), images_per_row=(1,))
    return model.logits(model(ids, positions_BT=torch.arange(8)[None], seen=model.see(inputs)))
