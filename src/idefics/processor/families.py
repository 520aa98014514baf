"""Which processor belongs to which family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.config import family_name
from idefics.config.json_files import read_json
from idefics.config.keys import Keys
from idefics.processor.base import Processor
from idefics.processor.idefics1 import IdeficsProcessor
from idefics.processor.idefics2 import Idefics2Processor

__all__ = ["PROCESSORS", "load_processor", "processor_class"]

PROCESSORS: Mapping[str, type[Processor]] = {"idefics2": Idefics2Processor, "idefics": IdeficsProcessor}


def processor_class(model_type: object) -> type[Processor]:
    """The processor of a family, by the name in `config.json`.

    Raises:
        ConfigError: no family of that name.
    """
    return PROCESSORS[family_name({"model_type": model_type})]


def load_processor(folder: Path, *, keys: Keys | None = None, **overrides: Any) -> Processor:
    """The processor of a checkpoint folder; `keys` and overrides as its class takes them."""
    return processor_class(read_json(folder / "config.json").get("model_type")).from_folder(folder, keys=keys, **overrides)
