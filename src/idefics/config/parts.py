"""The parts of a config: frozen dataclasses with the published format's names and defaults, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from idefics.config.keys import Keys
from idefics.config.rules import brief, check, flag, ids, number, one_of, whole
from idefics.errors import ConfigError

__all__ = [
    "ABSENT_TEXT", "CLIP", "LLAMA", "PARTS", "FlamingoConfig", "PerceiverConfig", "TextConfig", "VisionConfig", "check_sizes",
    "mapping", "section", "text_section",
]  # fmt: skip

PARTS = ("vision_config", "perceiver_config", "text_config")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu")

_LAYERS, _HEADS, _WIDTH, _SIDE, _TOKENS = 1_000, 2**12, 2**20, 2**16, 2**24
_EPS = 0.1
_POSITIONS = 2**40
_BASE = (100.0, 1e15)
"""Of rotary positions: below 100 the slowest channels turn once in some 600 tokens, and what is far looks near."""

# What the reference makes of keys that a file of the first generation leaves out.
LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "embed_dim": 768, "image_size": 224, "intermediate_size": 5120, "patch_size": 14, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
# What it makes of an Idefics2's file without `text_config`; in one that has it, Mistral's own defaults (`TextConfig`) hold.
ABSENT_TEXT = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "pad_token_id": 0}

Section = TypeVar("Section", bound="VisionConfig | PerceiverConfig | FlamingoConfig | TextConfig")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision tower, SigLIP or CLIP. SigLIP's `image_size` only sets the side of its table of positions."""

    hidden_size: int = whole(768, most=_WIDTH)
    intermediate_size: int = whole(3072, most=_WIDTH)
    num_hidden_layers: int = whole(12, most=_LAYERS)
    num_attention_heads: int = whole(12, most=_HEADS)
    num_channels: int = whole(3, most=2**8)
    image_size: int = whole(224, most=_SIDE)
    patch_size: int = whole(32, most=_SIDE)
    hidden_act: str = one_of("gelu_pytorch_tanh", ACTIVATIONS)
    layer_norm_eps: float = number(1e-6, most=_EPS)

    @property
    def patches_per_side(self) -> int:
        """Side of the square position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """The resampler that pools any number of patches to `resampler_n_latents` tokens, in the text's hidden size."""

    hidden_act: str = one_of("silu", ACTIVATIONS)
    resampler_n_latents: int = whole(64, most=_SIDE)
    resampler_depth: int = whole(3, most=_LAYERS)
    resampler_n_heads: int = whole(16, most=_HEADS)
    resampler_head_dim: int = whole(96, most=_SIDE)
    num_key_value_heads: int = whole(4, most=_HEADS)
    hidden_size: int = whole(most=_WIDTH)
    rms_norm_eps: float = number(most=_EPS)


@dataclass(frozen=True, kw_only=True)
class FlamingoConfig:
    """The first generation's resampler, in the tower's hidden size (arXiv 2204.14198); `resampler_n_latents` per image."""

    resampler_n_latents: int = whole(64, most=_SIDE)
    resampler_depth: int = whole(6, most=_LAYERS)
    resampler_n_heads: int = whole(16, most=_HEADS)
    resampler_head_dim: int = whole(96, most=_SIDE)
    qk_layer_norms_perceiver: bool = flag(False)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder: Mistral or, with as many key-value heads as query heads and no window, LLaMA.

    `sliding_window` counts the keys a token sees, itself included; None sees all before it.
    """

    vocab_size: int = whole(32000, most=_TOKENS)
    hidden_size: int = whole(4096, most=_WIDTH)
    intermediate_size: int = whole(14336, most=_WIDTH)
    num_hidden_layers: int = whole(32, most=_LAYERS)
    num_attention_heads: int = whole(32, most=_HEADS)
    num_key_value_heads: int = whole(8, most=_HEADS)
    head_dim: int = whole(most=_SIDE)
    hidden_act: str = one_of("silu", ACTIVATIONS)
    max_position_embeddings: int = whole(131072, most=_POSITIONS)
    rms_norm_eps: float = number(1e-6, most=_EPS)
    rope_theta: float = number(10000.0, least=_BASE[0], most=_BASE[1])
    sliding_window: int | None = whole(4096, most=_POSITIONS, or_null=True)
    bos_token_id: int | None = ids(1)
    eos_token_id: int | list[int] | None = ids(2, several=True)
    pad_token_id: int | None = ids(None)


def mapping(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a file as a dict of its own; empty where the file has none.

    Raises:
        ConfigError: it is no object.
    """
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be an object, not {brief(value)}")
    return dict(value)


def section(cls: type[Section], name: str, raw: Mapping[str, Any], keys: Keys) -> Section:
    """A part as its dataclass.

    Args:
        cls: one of the dataclasses above.
        name: how errors call it.
        raw: its keys.
        keys: what becomes of unknown ones.

    Raises:
        ConfigError: a key is unknown, or a value is of the wrong kind or out of range.
    """
    known = {f.name for f in fields(cls)}
    keys.check(name, raw, known)
    values = {key: value for key, value in raw.items() if key in known}
    check(cls, name, values)
    return cls(**values)


def text_section(raw: dict[str, Any], name: str, keys: Keys) -> TextConfig:
    """A decoder's part, with the rotary base where its era put it and the head size where the file leaves it out.

    Raises:
        ConfigError: as `section`; or two rotary bases.
    """
    rope = raw.pop("rope_parameters", None)
    if rope is not None:
        _take_rope(raw, rope, name, keys)
    if raw.get("head_dim") is None:
        hidden, heads = (
            raw.get("hidden_size", TextConfig.hidden_size),
            raw.get("num_attention_heads", TextConfig.num_attention_heads),
        )
        if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
            raise ConfigError(f"{name}.hidden_size = {brief(hidden)} is not a multiple of num_attention_heads = {brief(heads)}")
        raw["head_dim"] = hidden // heads
    return section(TextConfig, name, raw, keys)


def _take_rope(raw: dict[str, Any], rope: Any, name: str, keys: Keys) -> None:
    """Puts the rotary base of files of transformers 5 where earlier ones have it."""
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
        raise ConfigError(f"{name}.rope_parameters = {brief(rope)}; only rope_type 'default' is supported")
    keys.check(f"{name}.rope_parameters", rope, {"rope_type", "rope_theta"})
    inner, outer = rope.get("rope_theta"), raw.get("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        raise ConfigError(
            f"{name}.rope_theta = {brief(outer)} contradicts {name}.rope_parameters.rope_theta = {brief(inner)}; "
            "remove the one that the model was not trained with"
        )
    if inner is not None:
        raw["rope_theta"] = inner


def check_sizes(vision: VisionConfig, text: TextConfig) -> None:
    """Refuses sizes that no tower or decoder can have.

    Raises:
        ConfigError: both numbers are named.
    """
    if vision.hidden_size % vision.num_attention_heads:
        raise ConfigError(
            f"vision_config.hidden_size = {vision.hidden_size} is not a multiple of "
            f"num_attention_heads = {vision.num_attention_heads}"
        )
    if vision.image_size < vision.patch_size:
        raise ConfigError(f"vision_config.image_size = {vision.image_size} is below patch_size = {vision.patch_size}")
    if text.head_dim % 2:
        raise ConfigError(f"text_config.head_dim = {text.head_dim} must be even for rotary positions")
