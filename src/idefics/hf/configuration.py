"""The configurations as the reference spells them: built from keyword arguments, read from and saved to folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from idefics import config as own
from idefics.config.json_files import write_json
from idefics.errors import ConfigError, NotOffered
from idefics.hf.elsewhere import refuse_attribute
from idefics.hf.hub import HUB, folder_of, left_over
from idefics.weights.load import load_config

__all__ = ["Idefics2Config", "IdeficsConfig", "Spelled"]

# The reference's defaults for a missing part, with the vocabulary that its default `image_token_id` needs.
_TEXT = {"vocab_size": 32003, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "pad_token_id": 0}


class Spelled(own.Config):
    """What is alike in them.

    Args:
        raw: keys of a `config.json`; parts may be dicts or configs.

    Raises:
        ConfigError: a key or value cannot be honoured.
    """

    _plain: ClassVar[type[own.Config]]
    _missing: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **raw: Any) -> None:
        if all(dataclasses.is_dataclass(raw.get(part)) for part in ("vision_config", "perceiver_config", "text_config")):
            self._become(self._plain(**raw))  # all fields, as `dataclasses.replace` gives them
            return
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in raw.items()}  # type: ignore[arg-type]
        self._become(self._plain.from_dict({**self._missing, **plain}))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, allow_unknown: bool = False) -> Self:
        """Reads the content of a `config.json`."""
        return cls.of(cls._plain.from_dict({**cls._missing, **raw}, allow_unknown=allow_unknown))

    def _become(self, config: own.Config) -> None:
        """Takes all fields of another by the way in which they are made: the family's own, next in line after this class."""
        super().__init__(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Reads the configuration of a folder or Hub id.

        Raises:
            ConfigError: it is another family's, or cannot be honoured.
        """
        folder = folder_of(pretrained_model_name_or_path, options, weights=False)
        left_over(f"{cls.__name__}.from_pretrained", options, there=HUB)
        return cls.of(load_config(folder))

    @classmethod
    def of(cls, config: own.Config) -> Self:
        """The same configuration as this class.

        Raises:
            ConfigError: it is another family's.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, cls._plain):
            raise ConfigError(f"{cls.__name__} cannot hold model_type = {config.model_type!r}; use the Auto classes")
        self = cls.__new__(cls)
        self._become(config)
        return self

    def __getattr__(self, name: str) -> Any:
        refuse_attribute(type(self).__name__, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in {field.name for field in dataclasses.fields(self)} or hasattr(type(self), name):
            raise NotOffered(f"{type(self).__name__}.{name} = ...", instead="a configuration is made anew, with other values")
        super().__setattr__(name, value)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `config.json`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_json(Path(save_directory) / "config.json", self.to_dict())


def _of_text(name: str) -> Any:
    """A size of the decoder where the reference has it; like all sizes here, to be read only."""
    return property(lambda config: getattr(config.text_config, name), doc=f"`text_config.{name}`.")


class Idefics2Config(Spelled, own.Idefics2Config):
    """The configuration of an Idefics2.

    >>> Idefics2Config(vision_config={"image_size": 980, "patch_size": 14}).vision_config.patches_per_side
    70
    """

    _plain = own.Idefics2Config
    _missing: ClassVar[Mapping[str, Any]] = {"text_config": _TEXT}


class IdeficsConfig(Spelled, own.Idefics1Config):
    """The configuration of an IDEFICS, the first generation, flat as in the files. `vocab_size` counts no added ids.

    >>> config = IdeficsConfig(vocab_size=100, additional_vocab_size=2)
    >>> config.vocab_size, config.text_config.vocab_size
    (100, 102)
    """

    _plain = own.Idefics1Config

    hidden_size = _of_text("hidden_size")
    intermediate_size = _of_text("intermediate_size")
    num_hidden_layers = _of_text("num_hidden_layers")
    num_attention_heads = _of_text("num_attention_heads")
    hidden_act = _of_text("hidden_act")
    max_position_embeddings = _of_text("max_position_embeddings")
    rms_norm_eps = _of_text("rms_norm_eps")
    rope_theta = _of_text("rope_theta")
    bos_token_id = _of_text("bos_token_id")
    eos_token_id = _of_text("eos_token_id")
    pad_token_id = _of_text("pad_token_id")

    @property
    def vocab_size(self) -> int:
        """Ids without the added ones."""
        return self.text_config.vocab_size - self.additional_vocab_size
