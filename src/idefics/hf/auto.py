"""The Auto classes: which class reads a checkpoint is said by its `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from idefics.config import family_name
from idefics.config.json_files import read_json
from idefics.hf.configuration import Spelled
from idefics.hf.hub import folder_of
from idefics.hf.modeling import Idefics2ForConditionalGeneration, IdeficsForVisionText2Text
from idefics.hf.pretrained import PretrainedModel
from idefics.hf.processing import Idefics2Processor, IdeficsProcessor

__all__ = ["AutoConfig", "AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoProcessor"]

_MODELS: Mapping[str, type[PretrainedModel]] = {
    "idefics2": Idefics2ForConditionalGeneration,
    "idefics": IdeficsForVisionText2Text,
}
_PROCESSORS: Mapping[str, type[Idefics2Processor | IdeficsProcessor]] = {
    "idefics2": Idefics2Processor,
    "idefics": IdeficsProcessor,
}

Found = TypeVar("Found")


def _of(folder: Path, known: Mapping[str, Found]) -> Found:
    """What belongs to a checkpoint's `model_type`."""
    path = folder / "config.json"
    return known[family_name(read_json(path), where=f"{path}: config")]


def _processor_class(folder: Path) -> type[Idefics2Processor | IdeficsProcessor]:
    """By the model; in a folder that holds a processor only, by the name that the processor's files give."""
    if not (folder / "config.json").is_file():
        named = {cls.__name__: cls for cls in _PROCESSORS.values()}
        for path in (folder / "processor_config.json", folder / "preprocessor_config.json"):
            found = read_json(path).get("processor_class") if path.is_file() else None
            if found in named:
                return named[found]
    return _of(folder, _PROCESSORS)


class AutoConfig:
    """Loads the configuration of a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Spelled:
        """Reads a folder or Hub id; see the configuration's own `from_pretrained`."""
        folder = folder_of(pretrained_model_name_or_path, options, weights=False)
        return _of(folder, _MODELS).config_class.from_pretrained(folder, **options)


class AutoProcessor:
    """Loads the processor that belongs to a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Idefics2Processor | IdeficsProcessor:
        """Reads a folder or Hub id; see the processor's own `from_pretrained`."""
        folder = folder_of(pretrained_model_name_or_path, options, weights=False)
        return _processor_class(folder).from_pretrained(folder, **options)


class AutoModelForVision2Seq:
    """Loads the model that belongs to a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> PretrainedModel:
        """Reads a folder or Hub id; see the model's own `from_pretrained`."""
        folder = folder_of(pretrained_model_name_or_path, options)
        return _of(folder, _MODELS).from_pretrained(folder, **options)


class AutoModelForImageTextToText(AutoModelForVision2Seq):
    """The newer name of `AutoModelForVision2Seq`."""
