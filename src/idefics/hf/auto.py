"""The Auto classes: which class reads a checkpoint is said by its `model_type`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idefics.config import read_json
from idefics.errors import ConfigError
from idefics.hf.hub import folder_of
from idefics.hf.modeling import Idefics2ForConditionalGeneration
from idefics.hf.processing import Idefics2Processor

__all__ = ["AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoProcessor"]

_MODELS = {"idefics2": Idefics2ForConditionalGeneration}
_PROCESSORS = {"idefics2": Idefics2Processor}


def _model_type(folder: Path) -> str:
    found = read_json(folder / "config.json").get("model_type")
    if found not in _MODELS:
        raise ConfigError(f"{folder / 'config.json'}: model_type = {found!r} is none of {', '.join(sorted(_MODELS))}")
    return str(found)


def _processor_class(folder: Path) -> type[Idefics2Processor]:
    """By the model; in a folder that holds a processor only, by the name that the processor's files give."""
    if not (folder / "config.json").is_file():
        named = {cls.__name__: cls for cls in _PROCESSORS.values()}
        for path in (folder / "processor_config.json", folder / "preprocessor_config.json"):
            found = read_json(path).get("processor_class") if path.is_file() else None
            if found in named:
                return named[found]
    return _PROCESSORS[_model_type(folder)]


class AutoProcessor:
    """Loads the processor that belongs to a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Idefics2Processor:
        """Reads a folder or Hub id; see the processor's own `from_pretrained`."""
        folder = folder_of(pretrained_model_name_or_path, options, weights=False)
        return _processor_class(folder).from_pretrained(folder, **options)


class AutoModelForVision2Seq:
    """Loads the model that belongs to a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Idefics2ForConditionalGeneration:
        """Reads a folder or Hub id; see the model's own `from_pretrained`."""
        folder = folder_of(pretrained_model_name_or_path, options)
        return _MODELS[_model_type(folder)].from_pretrained(folder, **options)


class AutoModelForImageTextToText(AutoModelForVision2Seq):
    """The newer name of `AutoModelForVision2Seq`."""
