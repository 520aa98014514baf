"""`Idefics2Config` as the reference spells it: built from keyword arguments, read from and saved to folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from idefics import config as own
from idefics.hf.hub import folder_of, refuse
from idefics.weights.load import load_config

__all__ = ["Idefics2Config"]

# The reference's defaults for a missing part, with the vocabulary that its default `image_token_id` needs.
_TEXT = {"vocab_size": 32003, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "pad_token_id": 0}


class Idefics2Config(own.Idefics2Config):
    """The configuration of an Idefics2.

    Args:
        raw: keys of a `config.json`; parts may be dicts or configs.

    Raises:
        ConfigError: a key or value cannot be honoured.

    >>> Idefics2Config(vision_config={"image_size": 980, "patch_size": 14}).vision_config.patches_per_side
    70
    """

    def __init__(self, **raw: Any) -> None:
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in raw.items()}  # type: ignore[arg-type]
        parsed = own.Idefics2Config.from_dict({"text_config": _TEXT, **plain})
        for field in dataclasses.fields(parsed):
            object.__setattr__(self, field.name, getattr(parsed, field.name))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Idefics2Config:
        """Reads the configuration of a folder or Hub id."""
        folder = folder_of(pretrained_model_name_or_path, options, weights=False)
        refuse("Idefics2Config.from_pretrained", options)
        return cls.of(load_config(folder))

    @classmethod
    def of(cls, config: own.Idefics2Config) -> Idefics2Config:
        """The same configuration as this class."""
        if isinstance(config, cls):
            return config
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init})

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `config.json`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        own.write_json(Path(save_directory) / "config.json", self.to_dict())
