"""What a model is: frozen dataclasses, read from a checkpoint's `config.json` and written back to it.

Field names are those of the published files. A key that a file leaves out takes the default of the published *format*
(the reference writes only what differs from its class defaults), never a guess from shapes or file names. A key that is
neither a field nor known to be inert is refused: it may change the maths.

Two eras of files are read: those of 2024 (`torch_dtype`, `rope_theta`, perceiver without sizes of its own) and those
written by transformers 5 (`dtype`, `rope_parameters`). What is written back is readable by both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idefics.config.base import DTYPES, Config
from idefics.config.idefics1 import Idefics1Config
from idefics.config.idefics2 import Idefics2Config
from idefics.config.parts import FlamingoConfig, PerceiverConfig, TextConfig, VisionConfig
from idefics.errors import ConfigError

__all__ = [
    "CONFIGS", "DTYPES", "Config", "FlamingoConfig", "Idefics1Config", "Idefics2Config", "PerceiverConfig", "TextConfig",
    "VisionConfig", "family_name",
]  # fmt: skip

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
