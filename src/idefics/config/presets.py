"""Named configurations: of the published models, of the embedded one, and tiny ones for tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from idefics.config import Config, Idefics1Config, Idefics2Config
from idefics.errors import ConfigError, Quantised

__all__ = ["preset", "preset_names"]


def _idefics2(vision: dict[str, Any], perceiver: dict[str, Any], text: dict[str, Any], **rest: Any) -> Callable[[], Config]:
    return partial(
        Idefics2Config.from_dict, {"vision_config": vision, "perceiver_config": perceiver, "text_config": text, **rest}
    )


def _idefics1(text: dict[str, Any], vision: dict[str, Any], perceiver: dict[str, Any], **rest: Any) -> Callable[[], Config]:
    published = {
        "dtype": "bfloat16", "use_resampler": True, "qk_layer_norms": True, "additional_vocab_size": 2,
        "cross_layer_interval": 4,
    }  # fmt: skip
    resampler = {"qk_layer_norms_perceiver": True, **perceiver}
    return partial(
        Idefics1Config.from_dict, {**published, **text, "vision_config": vision, "perceiver_config": resampler, **rest}
    )


_VIT_H = dict(embed_dim=1280)  # OpenCLIP's ViT-H/14
_LLAMA_65B = dict(hidden_size=8192, intermediate_size=22016, num_hidden_layers=80, num_attention_heads=64)
_INSTRUCT = dict(additional_vocab_size=3)  # the base models have no `<end_of_utterance>`

_PRESETS: dict[str, Callable[[], Config]] = {
    "idefics2-8b": _idefics2(
        dict(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
            image_size=980, patch_size=14,
        ),
        {},
        dict(vocab_size=32003, max_position_embeddings=32768, rms_norm_eps=1e-5, pad_token_id=0),
        dtype="bfloat16",
    ),
    "idefics2-nano": _idefics2(
        dict(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=168, patch_size=14),
        dict(resampler_n_latents=32, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=64, num_key_value_heads=2),
        dict(
            vocab_size=768, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5, sliding_window=None, pad_token_id=0,
        ),
        image_token_id=4,
        dtype="bfloat16",
    ),
    "tiny-random-idefics2": _idefics2(
        dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=980, patch_size=14),
        dict(resampler_n_latents=64, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=8, num_key_value_heads=2),
        dict(
            vocab_size=32003, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32768, rms_norm_eps=1e-5, sliding_window=4096, pad_token_id=0,
        ),
    ),
    "idefics-9b": _idefics1({}, _VIT_H, {}),
    "idefics-9b-instruct": _idefics1({}, _VIT_H, {}, **_INSTRUCT),
    "idefics-80b": _idefics1(_LLAMA_65B, _VIT_H, {}, alpha_type="vector"),
    "idefics-80b-instruct": _idefics1(_LLAMA_65B, _VIT_H, {}, alpha_type="vector", **_INSTRUCT),
    "tiny-random-idefics": _idefics1(
        dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, cross_layer_interval=2,
            additional_vocab_size=3, alpha_initializer="ones", dtype="float32",
        ),
        dict(embed_dim=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28),
        dict(resampler_n_latents=8, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=8),
    ),
}  # fmt: skip


# As repositories of such models end.
_FEWER_BITS = re.compile(
    r"[-_.](AWQ|GPTQ|GGUF|HQQ|EXL[23]|(?:bnb-)?(?:nf4|fp4|[348]-?bits?)|int[48]|fp8|w[48]a(?:8|16)|Q\d\w*)"
    r"(?:[-_.](?:int[48]|[48]-?bit))?$",
    re.IGNORECASE,
)


def preset_names() -> tuple[str, ...]:
    """The names `preset` knows."""
    return tuple(sorted(_PRESETS))


def preset(name: str) -> Config:
    """A named configuration; a Hub id's last part names the same (`HuggingFaceM4/idefics2-8b` -> `idefics2-8b`).

    Raises:
        ConfigError: no preset of that name.
        Quantised: the name is that of such a model in fewer bits, which is another one: in files and in memory.

    >>> preset("idefics2-8b").text_config.head_dim
    128
    """
    short = name.rsplit("/", 1)[-1]
    fewer = _FEWER_BITS.search(short)
    if fewer is not None:
        short = short[: fewer.start()]
    for suffix in ("-base", "-chatty"):
        short = short.removesuffix(suffix)
    if fewer is not None and short in _PRESETS:
        raise Quantised(
            f"{name} stores weights in fewer bits ({fewer.group(1)}), which this version does not read; {short} is the "
            "model in 16 bits"
        )
    if short not in _PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    return _PRESETS[short]()
