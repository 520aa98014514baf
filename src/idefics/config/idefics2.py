"""The configuration of Idefics2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from idefics.config.base import Config, check_common, dtype_of
from idefics.config.keys import Keys
from idefics.config.parts import (
    ABSENT_TEXT,
    PARTS,
    PerceiverConfig,
    VisionConfig,
    mapping,
    section,
    text_section,
)
from idefics.config.rules import brief, whole
from idefics.errors import ConfigError

__all__ = ["Idefics2Config"]


@dataclass(frozen=True, kw_only=True)
class Idefics2Config(Config):
    """A whole Idefics2: three parts and how they meet.

    Attributes:
        image_token_id: the id whose positions the image latents replace.
    """

    model_type: str = field(default="idefics2", init=False)
    perceiver_config: PerceiverConfig
    image_token_id: int = whole(32001, least=0, most=2**31)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def depth(self) -> int:
        """Layers of tower, resampler and decoder."""
        return self.vision_config.num_hidden_layers + self.resampler_layers + self.text_config.num_hidden_layers

    @property
    def resampler_layers(self) -> int:
        """Layers that pool an image's features."""
        return self.perceiver_config.resampler_depth

    @property
    def latents(self) -> int:
        """Image tokens of one sub-image."""
        return self.perceiver_config.resampler_n_latents

    @property
    def values_per_patch(self) -> int:
        """Of the tower's MLP (residual, normed input, inner before and after act) or the projection's, the larger."""
        vision, inner = self.vision_config, self.text_config.intermediate_size
        return max(2 * vision.hidden_size + 2 * vision.intermediate_size, vision.hidden_size + 3 * inner)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, allow_unknown: bool = False) -> Self:
        """Reads the content of a `config.json` of either era.

        Args:
            raw: the content.
            allow_unknown: as in `Config.from_dict`.

        Raises:
            ConfigError: a key that may change the maths is unknown, or a value contradicts another.
        """
        keys = Keys(allow_unknown=allow_unknown)
        keys.check("config", raw, {*PARTS, "image_token_id"})
        text_raw = mapping(raw, "text_config") or dict(ABSENT_TEXT)
        if text_raw.get("model_type", "mistral") != "mistral":
            raise ConfigError(f"text_config.model_type = {brief(text_raw['model_type'])}; Idefics2's decoder is 'mistral'")
        text = text_section(text_raw, "text_config", keys)
        perceiver = mapping(raw, "perceiver_config")
        perceiver.setdefault("hidden_size", text.hidden_size)
        perceiver.setdefault("rms_norm_eps", text.rms_norm_eps)
        if perceiver["hidden_size"] != text.hidden_size:
            # The reference's class default (4096) leaks into files of smaller models; the text's size is what is built.
            perceiver.update(hidden_size=text.hidden_size, rms_norm_eps=text.rms_norm_eps)
        return cls(
            vision_config=section(VisionConfig, "vision_config", mapping(raw, "vision_config"), keys),
            perceiver_config=section(PerceiverConfig, "perceiver_config", perceiver, keys),
            text_config=text,
            image_token_id=raw.get("image_token_id", 32001),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            dtype=dtype_of(raw),
            unknown=keys.passed,
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that this package and every transformers since 4.40 read alike."""
        text = dataclasses.asdict(self.text_config)
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": self.text_config.rope_theta}
        return {
            "architectures": ["Idefics2ForConditionalGeneration"],
            "model_type": self.model_type,
            "image_token_id": self.image_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype,
            "vision_config": {"model_type": "idefics2_vision", **dataclasses.asdict(self.vision_config)},
            "perceiver_config": {"model_type": "idefics2_perceiver", **dataclasses.asdict(self.perceiver_config)},
            "text_config": {"model_type": "mistral", **text},
        }


def _check(config: Idefics2Config) -> None:
    check_common(config)
    perceiver, text = config.perceiver_config, config.text_config
    for name, queries, keys in (
        ("text_config", text.num_attention_heads, text.num_key_value_heads),
        ("perceiver_config", perceiver.resampler_n_heads, perceiver.num_key_value_heads),
    ):
        if queries % keys:
            raise ConfigError(f"{name}: {queries} query heads are not a multiple of {keys} key-value heads")
    if perceiver.hidden_size != text.hidden_size:
        raise ConfigError(
            f"perceiver_config.hidden_size = {perceiver.hidden_size} differs from text_config.hidden_size = {text.hidden_size}"
        )
    if config.image_token_id >= text.vocab_size:
        raise ConfigError(f"image_token_id = {config.image_token_id} is outside the vocabulary of {text.vocab_size}")
