"""The Hugging Face face: the model cards' snippets run with only the import line changed.

Names, arguments and defaults are those of the reference where the snippets and common use meet them; what is not offered
is refused by name instead of being ignored.
"""

from __future__ import annotations

from idefics.hf.auto import AutoConfig, AutoModelForImageTextToText, AutoModelForVision2Seq, AutoProcessor
from idefics.hf.configuration import Idefics2Config, IdeficsConfig
from idefics.hf.modeling import Idefics2ForConditionalGeneration, IdeficsForVisionText2Text
from idefics.hf.processing import Idefics2ImageProcessor, Idefics2Processor, IdeficsImageProcessor, IdeficsProcessor

__all__ = [
    "AutoConfig",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoProcessor",
    "Idefics2Config",
    "Idefics2ForConditionalGeneration",
    "Idefics2ImageProcessor",
    "Idefics2Processor",
    "IdeficsConfig",
    "IdeficsForVisionText2Text",
    "IdeficsImageProcessor",
    "IdeficsProcessor",
]
