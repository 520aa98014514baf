"""Which models there are. A family is named here, and by its own files; nothing else asks what it is.

To add one: a config (and its row in `config.CONFIGS`), a model, a table beside `idefics2.py`, and a row below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from idefics.config import CONFIGS, Config, family_name
from idefics.config.rules import brief
from idefics.errors import ConfigError
from idefics.model.base import VisionLanguageModel
from idefics.model.idefics1 import Idefics1
from idefics.model.idefics2 import Idefics2
from idefics.model.layers.attention import Backend
from idefics.weights import idefics1, idefics2
from idefics.weights.quantised import refuse_config
from idefics.weights.rename import RenameTable

__all__ = ["FAMILIES", "Family", "build_on_meta", "family_of", "read_config"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What it takes to read and write the checkpoints of one family.

    Attributes:
        model: built from a config.
        architectures: class names that `config.json` may give.
        parts: what is counted apart, by the prefix of our parameter names; the first that fits counts.
        table: published parameter names to ours.
        overflows: dtypes too narrow for the numbers inside models of this family.
    """

    model: Callable[..., VisionLanguageModel]
    architectures: tuple[str, ...]
    parts: Mapping[str, str]
    table: RenameTable
    overflows: tuple[torch.dtype, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "idefics2": Family(
        model=Idefics2,
        architectures=idefics2.ARCHITECTURES,
        parts=idefics2.PARTS,
        table=idefics2.TABLE,
    ),
    "idefics": Family(
        model=Idefics1,
        architectures=idefics1.ARCHITECTURES,
        parts=idefics1.PARTS,
        table=idefics1.TABLE,
        overflows=(torch.float16,),  # text-generation-inference#1214
    ),
}


def family_of(config: Config) -> Family:
    """The family that a config belongs to."""
    return FAMILIES[config.model_type]


def read_config(raw: Mapping[str, Any], *, allow_unknown: bool = False) -> Config:
    """Reads the content of any family's `config.json`.

    Args:
        raw: the content.
        allow_unknown: let keys pass that ask for something nobody here knows; they stand in `Config.unknown` then.

    Raises:
        ConfigError: of no family here, or refused by its config class.
        Quantised: its weights are in fewer bits.
    """
    model_type = family_name(raw)
    refuse_config(raw)
    family = FAMILIES[model_type]
    architectures = raw.get("architectures") or []
    known = isinstance(architectures, list) and any(name in family.architectures for name in architectures)
    if architectures and not known:
        raise ConfigError(
            f"config.architectures = {brief(architectures)}; of {model_type!r} only {', '.join(family.architectures)} is "
            "supported"
        )
    return CONFIGS[model_type].from_dict(raw, allow_unknown=allow_unknown)


def build_on_meta(config: Config, *, backend: Backend = "auto") -> VisionLanguageModel:
    """A model with shapes and no storage."""
    with torch.device("meta"), _Uninitialized():
        return family_of(config).model(config, backend=backend)


class _Uninitialized(TorchFunctionMode):
    """Skips torch.nn's own initialisation: on the meta device it fills nothing, and its first call imports for a second."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
