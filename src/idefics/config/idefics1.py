"""The configuration of IDEFICS, the first generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from idefics.config.base import Config, check_common, dtype_of
from idefics.config.keys import Keys
from idefics.config.parts import (
    CLIP,
    LLAMA,
    FlamingoConfig,
    VisionConfig,
    mapping,
    section,
    text_section,
)
from idefics.config.rules import check, flag, number, one_of, ruled, whole
from idefics.errors import ConfigError

__all__ = ["ALPHAS", "Idefics1Config"]

ALPHAS = ("zeros", "ones", "normal", "gaussian", "random")


@dataclass(frozen=True, kw_only=True)
class Idefics1Config(Config):
    """A whole IDEFICS, the first generation. Its file is flat: the decoder's sizes stand at the top.

    Attributes:
        perceiver_config: the resampler, if `use_resampler`.
        use_resampler: whether images are pooled to latents; without, the decoder looks at all the tower's features.
        additional_vocab_size: ids at the end of the vocabulary that have tables of their own.
        cross_layer_interval: a gated cross-attention block stands before every so many decoder layers.
        qk_layer_norms: whether those blocks norm their queries and keys.
        alpha_type: `"float"` or `"vector"`: one gate per block or one per channel.
        alpha_initializer: how gates begin, one of `ALPHAS`; with `"zeros"` an untrained model is blind.
        alphas_initializer_range: standard deviation of gates that begin at random.
    """

    model_type: str = field(default="idefics", init=False)
    perceiver_config: FlamingoConfig
    use_resampler: bool = flag(False)
    additional_vocab_size: int = whole(0, least=0, most=2**20)
    cross_layer_interval: int = whole(1, most=1_000)
    qk_layer_norms: bool = flag(False)
    alpha_type: str = one_of("float", ("float", "vector"))
    alpha_initializer: str = one_of("zeros", ALPHAS)
    alphas_initializer_range: float = number(0.0, most=1e6, or_least=True)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def depth(self) -> int:
        """Layers of tower, resampler and decoder, gated ones included."""
        text = self.text_config.num_hidden_layers + self.cross_layers
        return self.vision_config.num_hidden_layers + self.resampler_layers + text

    @property
    def resampler_layers(self) -> int:
        """Layers that pool an image's features; 0 where there is no resampler."""
        return self.perceiver_config.resampler_depth if self.use_resampler else 0

    @property
    def square_side(self) -> int:
        """Side in pixels of the squares that all images become."""
        return self.vision_config.image_size

    @property
    def image_token_id(self) -> int:
        """The second of the added ids: `<fake_token_around_image>` stands before it, `<end_of_utterance>` after it.

        Raises:
            ConfigError: there are fewer than two added ids, so that no text can hold a place for an image.
        """
        if self.additional_vocab_size < 2:
            raise ConfigError(
                f"config.additional_vocab_size = {self.additional_vocab_size}: without two added ids, those of "
                "<fake_token_around_image> and <image>, the model has no image token and takes text only"
            )
        return self.text_config.vocab_size - self.additional_vocab_size + 1

    @property
    def values_per_patch(self) -> int:
        """Of the tower's MLP: residual, normed input, inner before and after act."""
        return 2 * self.vision_config.hidden_size + 2 * self.vision_config.intermediate_size

    @property
    def latents(self) -> int:
        """Vectors of one image that the decoder looks at."""
        whole = self.vision_config.patches_per_side**2 + 1
        return self.perceiver_config.resampler_n_latents if self.use_resampler else whole

    @property
    def cross_layers(self) -> int:
        """Gated cross-attention blocks."""
        return self.text_config.num_hidden_layers // self.cross_layer_interval

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
        # No such file has a text_config: its sizes would stand there unread.
        keys.check("config", raw, {*ruled(cls), *LLAMA, "rope_parameters", "vision_config", "perceiver_config"})
        text = {**LLAMA, **{key: raw[key] for key in (*LLAMA, "rope_parameters") if key in raw}}
        if raw.get("rope_theta") is None:
            del text["rope_theta"]  # the default is no base that `rope_parameters` could contradict
        text.update(num_key_value_heads=text["num_attention_heads"], sliding_window=None)
        extra = raw.get("additional_vocab_size", 0)
        check(cls, "config", {"additional_vocab_size": extra})
        if isinstance(text["vocab_size"], int) and not isinstance(text["vocab_size"], bool):
            text["vocab_size"] += extra
        vision = {**CLIP, **mapping(raw, "vision_config")}
        width = vision.pop("embed_dim")
        vision.setdefault("hidden_size", width)  # the reference takes either name
        perceiver = mapping(raw, "perceiver_config")
        perceiver.pop("use_resampler", None)  # the reference writes it there and reads the one at the top
        plain = ("use_resampler", "cross_layer_interval", "qk_layer_norms", "alpha_type", "alpha_initializer")
        return cls(
            vision_config=section(VisionConfig, "vision_config", vision, keys),
            perceiver_config=section(FlamingoConfig, "perceiver_config", perceiver, keys),
            text_config=text_section(text, "config", keys),
            additional_vocab_size=extra,
            alphas_initializer_range=raw.get("alphas_initializer_range", 0.0),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            dtype=dtype_of(raw),
            unknown=keys.passed,
            **{key: raw[key] for key in plain if key in raw},
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that this package and every transformers since 4.32 read alike."""
        text = {key: value for key, value in dataclasses.asdict(self.text_config).items() if key in LLAMA}
        text["vocab_size"] -= self.additional_vocab_size
        vision = dataclasses.asdict(self.vision_config)
        vision["embed_dim"] = vision.pop("hidden_size")
        own = {name: getattr(self, name) for name in ("model_type", *ruled(type(self))) if name != "dtype"}
        return {
            "architectures": ["IdeficsForVisionText2Text"],
            **own,
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.text_config.rope_theta},
            "torch_dtype": self.dtype,
            "vision_config": {"model_type": "idefics_vision", **vision},
            # As the reference spells it.
            "perceiver_config": {
                "model_type": "idefics_perciever",
                "use_resampler": self.use_resampler,
                **dataclasses.asdict(self.perceiver_config),
            },
        }


def _check(config: Idefics1Config) -> None:
    check_common(config)
    layers, interval = config.text_config.num_hidden_layers, config.cross_layer_interval
    if layers % interval:
        raise ConfigError(f"config.num_hidden_layers = {layers} is not a multiple of cross_layer_interval = {interval}")
