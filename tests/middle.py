"""Configs between tiny and true: heads of the true sizes, layers few and narrow."""

from __future__ import annotations

from typing import Any

from idefics.config import Idefics1Config, Idefics2Config

__all__ = ["middle_idefics1", "middle_idefics2"]


def middle_idefics2(**text: Any) -> Idefics2Config:
    """Of Idefics2's shape: heads of 72 (tower), 96 (resampler, four to a key) and 128 (decoder, four to a key), a window."""
    fields = dict(
        vocab_size=515, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, max_position_embeddings=4096, rms_norm_eps=1e-5, sliding_window=256,
        pad_token_id=0,
    )  # fmt: skip
    return Idefics2Config.from_dict(
        dict(
            vision_config=dict(
                hidden_size=288,
                intermediate_size=512,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=980,
                patch_size=14,
            ),
            perceiver_config=dict(
                resampler_n_latents=16, resampler_depth=2, resampler_n_heads=8, resampler_head_dim=96, num_key_value_heads=2
            ),
            text_config={**fields, **text},
            image_token_id=500,
        )
    )


def middle_idefics1() -> Idefics1Config:
    """Of IDEFICS's shape: heads of 80 (tower), 96 (resampler) and 128 (decoder), gates open."""
    return Idefics1Config.from_dict(
        dict(
            model_type="idefics", vocab_size=512, additional_vocab_size=3, hidden_size=512, intermediate_size=1024,
            num_hidden_layers=4, num_attention_heads=4, cross_layer_interval=2, qk_layer_norms=True, alpha_type="float",
            alpha_initializer="ones", use_resampler=True, max_position_embeddings=2048, pad_token_id=0,
            vision_config=dict(
                embed_dim=320, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4, image_size=224, patch_size=14
            ),
            perceiver_config=dict(
                use_resampler=True, resampler_n_latents=16, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=96,
                qk_layer_norms_perceiver=True,
            ),
        )
    )  # fmt: skip
