"""What a model is: frozen dataclasses, read from a checkpoint's `config.json` and written back to it.

Field names are those of the published files. A key that a file leaves out takes the default of the published *format*
(the reference writes only what differs from its class defaults), never a guess from shapes or file names. A key that is
neither a field nor known to be inert is refused: it may change the maths.

Two eras of files are read: those of 2024 (`torch_dtype`, `rope_theta`, perceiver without sizes of its own) and those
written by transformers 5 (`dtype`, `rope_parameters`). What is written back is readable by both.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from idefics.errors import ConfigError
from idefics.json_files import read_json, write_json
from idefics.sections import (
    ABSENT_TEXT,
    CLIP,
    LLAMA,
    FlamingoConfig,
    PerceiverConfig,
    TextConfig,
    VisionConfig,
    check_sizes,
    mapping,
    refuse_unknown,
    section,
    text_section,
)

__all__ = [
    "CONFIGS", "DTYPES", "Config", "FlamingoConfig", "Idefics1Config", "Idefics2Config", "PerceiverConfig", "TextConfig",
    "VisionConfig", "family_name", "read_json", "write_json",
]  # fmt: skip

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """What the configurations of all families have in common.

    Attributes:
        vision_config: the tower.
        text_config: the decoder; its `vocab_size` counts every id that the model knows.
        tie_word_embeddings: whether `lm_head` is the embedding table.
        dtype: how the weights are stored, one of `DTYPES`.
        model_type: the family's name in `config.json`.
    """

    model_type: str = field(init=False)
    vision_config: VisionConfig
    perceiver_config: PerceiverConfig | FlamingoConfig
    text_config: TextConfig
    tie_word_embeddings: bool = False
    dtype: str = "float32"

    @classmethod
    @abstractmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Reads the content of a `config.json`."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json`."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """The id that stands for an image in a prompt."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Layers that a number goes through, of all parts together."""

    @property
    @abstractmethod
    def latents(self) -> int:
        """Vectors of one (sub-)image that the decoder looks at."""

    @property
    @abstractmethod
    def values_per_patch(self) -> int:
        """Values that a patch takes at the vision side's widest moment."""

    @property
    @abstractmethod
    def resampler_layers(self) -> int:
        """Layers that pool an image's features; 0 where there is no resampler."""

    @property
    def square_side(self) -> int | None:
        """Side in pixels of the squares that all images become; None where images keep their shape."""
        return None

    @property
    def cross_layers(self) -> int:
        """Blocks of the decoder that look at images apart from the text."""
        return 0

    @property
    def values_per_image(self) -> int:
        """Values kept of one image beside the text's cache: keys and values of the blocks that look at images."""
        return 2 * self.cross_layers * self.latents * self.text_config.num_attention_heads * self.text_config.head_dim


@dataclass(frozen=True, kw_only=True)
class Idefics2Config(Config):
    """A whole Idefics2: three parts and how they meet.

    Attributes:
        image_token_id: the id whose positions the image latents replace.
    """

    model_type: str = field(default="idefics2", init=False)
    perceiver_config: PerceiverConfig
    image_token_id: int = 32001

    def __post_init__(self) -> None:
        _check_idefics2(self)

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
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Reads the content of a `config.json` of either era.

        Raises:
            ConfigError: a key that would change the maths is unknown, or a value contradicts another.
        """
        refuse_unknown("config", raw, {*_PARTS, "image_token_id"})
        text_raw = mapping(raw, "text_config") or dict(ABSENT_TEXT)
        if text_raw.get("model_type", "mistral") != "mistral":
            raise ConfigError(f"text_config.model_type = {text_raw['model_type']!r}; Idefics2's decoder is 'mistral'")
        text = text_section(text_raw, "text_config")
        perceiver = mapping(raw, "perceiver_config")
        perceiver.setdefault("hidden_size", text.hidden_size)
        perceiver.setdefault("rms_norm_eps", text.rms_norm_eps)
        if perceiver["hidden_size"] != text.hidden_size:
            # The reference's class default (4096) leaks into files of smaller models; the text's size is what is built.
            perceiver.update(hidden_size=text.hidden_size, rms_norm_eps=text.rms_norm_eps)
        return cls(
            vision_config=section(VisionConfig, "vision_config", mapping(raw, "vision_config")),
            perceiver_config=section(PerceiverConfig, "perceiver_config", perceiver),
            text_config=text,
            image_token_id=raw.get("image_token_id", 32001),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            dtype=_dtype(raw),
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
    use_resampler: bool = False
    additional_vocab_size: int = 0
    cross_layer_interval: int = 1
    qk_layer_norms: bool = False
    alpha_type: str = "float"
    alpha_initializer: str = "zeros"
    alphas_initializer_range: float = 0.0

    def __post_init__(self) -> None:
        _check_idefics1(self)

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
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Reads the content of a `config.json` of either era.

        Raises:
            ConfigError: a key that would change the maths is unknown, or a value contradicts another.
        """
        own = {f.name for f in fields(cls)} - {"text_config"}  # which no such file has: its sizes would stand there unread
        refuse_unknown("config", raw, own | set(LLAMA) | {"rope_parameters"})
        text = {**LLAMA, **{key: raw[key] for key in (*LLAMA, "rope_parameters") if key in raw}}
        text.update(num_key_value_heads=text["num_attention_heads"], sliding_window=None)
        extra = raw.get("additional_vocab_size", 0)
        if isinstance(extra, bool) or not isinstance(extra, int) or extra < 0:
            raise ConfigError(f"config.additional_vocab_size must be a whole number, not {extra!r}")
        if isinstance(text["vocab_size"], int):
            text["vocab_size"] += extra
        vision = {**CLIP, **mapping(raw, "vision_config")}
        width = vision.pop("embed_dim")
        vision.setdefault("hidden_size", width)  # the reference takes either name
        perceiver = mapping(raw, "perceiver_config")
        perceiver.pop("use_resampler", None)  # the reference writes it there and reads the one at the top
        plain = ("use_resampler", "cross_layer_interval", "qk_layer_norms", "alpha_type", "alpha_initializer")
        return cls(
            vision_config=section(VisionConfig, "vision_config", vision),
            perceiver_config=section(FlamingoConfig, "perceiver_config", perceiver),
            text_config=text_section(text, "config"),
            additional_vocab_size=extra,
            alphas_initializer_range=raw.get("alphas_initializer_range", 0.0),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            dtype=_dtype(raw),
            **{key: raw[key] for key in plain if key in raw},
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that this package and every transformers since 4.32 read alike."""
        text = {key: value for key, value in dataclasses.asdict(self.text_config).items() if key in LLAMA}
        text["vocab_size"] -= self.additional_vocab_size
        vision = dataclasses.asdict(self.vision_config)
        vision["embed_dim"] = vision.pop("hidden_size")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.type in ("bool", "int", "str", "float")}
        own.pop("dtype")
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


_PARTS = ("vision_config", "perceiver_config", "text_config")

CONFIGS: Mapping[str, type[Config]] = {"idefics2": Idefics2Config, "idefics": Idefics1Config}
"""The families by the `model_type` of their files."""


def family_name(raw: Mapping[str, Any], *, where: str = "config") -> str:
    """The family that the content of a `config.json` says it is of, one of `CONFIGS`.

    Args:
        raw: the content.
        where: how an error calls it.

    Raises:
        ConfigError: it names none of this package.
    """
    found = raw.get("model_type")
    if not isinstance(found, str) or found not in CONFIGS:
        known = ", ".join(map(repr, CONFIGS))
        raise ConfigError(f"{where}.model_type = {found!r} is no model of this package; it has {known}")
    return found


def _dtype(raw: Mapping[str, Any]) -> str:
    return str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")


def _check_common(config: Config) -> None:
    check_sizes(config.vision_config, config.text_config)
    if not isinstance(config.tie_word_embeddings, bool):
        raise ConfigError(f"tie_word_embeddings must be true or false, not {config.tie_word_embeddings!r}")
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype = {config.dtype!r} is not one of {', '.join(DTYPES)}")


def _check_idefics1(config: Idefics1Config) -> None:
    _check_common(config)
    layers, interval = config.text_config.num_hidden_layers, config.cross_layer_interval
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ConfigError(f"config.cross_layer_interval must be a positive whole number, not {interval!r}")
    if layers % interval:
        raise ConfigError(f"config.num_hidden_layers = {layers} is not a multiple of cross_layer_interval = {interval}")
    for name in ("use_resampler", "qk_layer_norms"):
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"config.{name} must be true or false, not {getattr(config, name)!r}")
    spread = config.alphas_initializer_range
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < math.inf:
        raise ConfigError(f"config.alphas_initializer_range must be a number from 0, not {spread!r}")
    if config.alpha_type not in ("float", "vector"):
        raise ConfigError(f"config.alpha_type = {config.alpha_type!r} is not one of float, vector")
    if config.alpha_initializer not in ALPHAS:
        raise ConfigError(f"config.alpha_initializer = {config.alpha_initializer!r} is not one of {', '.join(ALPHAS)}")


def _check_idefics2(config: Idefics2Config) -> None:
    _check_common(config)
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
    if isinstance(config.image_token_id, bool) or not isinstance(config.image_token_id, int):
        raise ConfigError(f"image_token_id must be a whole number, not {config.image_token_id!r}")
    if not 0 <= config.image_token_id < text.vocab_size:
        raise ConfigError(f"image_token_id = {config.image_token_id} is outside the vocabulary of {text.vocab_size}")
