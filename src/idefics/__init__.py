"""Run, serve, fine-tune, quantise, evaluate and audit the IDEFICS family of open vision-language models.

    import idefics
    model = idefics.load()                                        # the embedded model
    model.generate("What is in this image?", images="photo.jpg")

The Hugging Face face (`AutoProcessor`, `AutoModelForVision2Seq`, ...) makes the model cards' snippets run with only the
import line changed. Every name is loaded when it is first used: `import idefics` alone loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Answer": "idefics.asking.answers",
    "AutoConfig": "idefics.hf",
    "AutoModelForImageTextToText": "idefics.hf",
    "AutoModelForVision2Seq": "idefics.hf",
    "AutoProcessor": "idefics.hf",
    "Idefics": "idefics.api",
    "Idefics2Config": "idefics.hf",
    "Idefics2ForConditionalGeneration": "idefics.hf",
    "Idefics2ImageProcessor": "idefics.hf",
    "Idefics2Processor": "idefics.hf",
    "IdeficsConfig": "idefics.hf",
    "IdeficsError": "idefics.errors",
    "IdeficsForVisionText2Text": "idefics.hf",
    "IdeficsImageProcessor": "idefics.hf",
    "IdeficsProcessor": "idefics.hf",
    "Limits": "idefics.engine.limits",
    "SamplingParams": "idefics.engine.sampling_params",
    "Score": "idefics.asking.answers",
    "load": "idefics.api",
    "load_image": "idefics.processor.fetch",
}

__all__ = [
    "Answer",
    "AutoConfig",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoProcessor",
    "Idefics",
    "Idefics2Config",
    "Idefics2ForConditionalGeneration",
    "Idefics2ImageProcessor",
    "Idefics2Processor",
    "IdeficsConfig",
    "IdeficsError",
    "IdeficsForVisionText2Text",
    "IdeficsImageProcessor",
    "IdeficsProcessor",
    "Limits",
    "SamplingParams",
    "Score",
    "load",
    "load_image",
]

if TYPE_CHECKING:
    from idefics import fewshot as fewshot
    from idefics.api import Idefics, load
    from idefics.asking.answers import Answer, Score
    from idefics.engine.limits import Limits
    from idefics.engine.sampling_params import SamplingParams
    from idefics.errors import IdeficsError
    from idefics.hf import (
        AutoConfig,
        AutoModelForImageTextToText,
        AutoModelForVision2Seq,
        AutoProcessor,
        Idefics2Config,
        Idefics2ForConditionalGeneration,
        Idefics2ImageProcessor,
        Idefics2Processor,
        IdeficsConfig,
        IdeficsForVisionText2Text,
        IdeficsImageProcessor,
        IdeficsProcessor,
    )
    from idefics.processor.fetch import load_image


def __getattr__(name: str) -> Any:
    if name == "fewshot":
        return import_module("idefics.fewshot")
    if name not in _WHERE:
        raise AttributeError(f"module 'idefics' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, "fewshot"])
