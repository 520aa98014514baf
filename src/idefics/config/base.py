"""What the configurations of all families have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from idefics.config.parts import FlamingoConfig, PerceiverConfig, TextConfig, VisionConfig, check_sizes
from idefics.config.rules import check, flag, one_of

__all__ = ["DTYPES", "Config", "check_common", "dtype_of"]

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """What the configurations of all families have in common.

    Attributes:
        vision_config: the tower.
        text_config: the decoder; its `vocab_size` counts every id that the model knows.
        tie_word_embeddings: whether `lm_head` is the embedding table.
        dtype: how the weights are stored, one of `DTYPES`.
        unknown: keys of the file that were let pass though nobody here knows what they ask for, by path; not written back.
        model_type: the family's name in `config.json`.
    """

    model_type: str = field(init=False)
    vision_config: VisionConfig
    perceiver_config: PerceiverConfig | FlamingoConfig
    text_config: TextConfig
    tie_word_embeddings: bool = flag(False)
    dtype: str = one_of("float32", DTYPES)
    unknown: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    @abstractmethod
    def from_dict(cls, raw: Mapping[str, Any], *, allow_unknown: bool = False) -> Self:
        """Reads the content of a `config.json`.

        Args:
            raw: the content.
            allow_unknown: let keys pass that ask for something nobody here knows; they stand in `unknown` then.
        """

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


def dtype_of(raw: Mapping[str, Any]) -> str:
    """How a file says that its weights are stored; both eras' keys are read."""
    return str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")


def check_common(config: Config) -> None:
    """Refuses what no family allows.

    Raises:
        ConfigError: a value that breaks the rule of its field, or sizes that contradict each other.
    """
    check(type(config), "config", vars(config))
    check_sizes(config.vision_config, config.text_config)
