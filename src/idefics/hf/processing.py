"""The processors with the reference's way of loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

from idefics.hf.hub import folder_of
from idefics.processor import idefics1, idefics2
from idefics.processor.image import ImageProcessor
from idefics.processor.square_image import SquareImageProcessor

__all__ = ["Idefics2ImageProcessor", "Idefics2Processor", "IdeficsImageProcessor", "IdeficsProcessor"]


class _FromFolder(Protocol):
    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self: ...


class _FromPretrained(_FromFolder):
    """What is read from a folder, read from the Hub too."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Reads a folder or Hub id; other options override fields, e.g. `size=` or `image_size=`."""
        return cls.from_folder(folder_of(pretrained_model_name_or_path, options, weights=False), **options)


class Idefics2ImageProcessor(ImageProcessor, _FromPretrained):
    """Images alone to pixels: alpha is composited on white and EXIF ignored, as the reference does without text."""


class Idefics2Processor(idefics2.Idefics2Processor, _FromPretrained):
    """Texts and images to inputs (`idefics.processor.idefics2.Idefics2Processor`)."""


class IdeficsImageProcessor(SquareImageProcessor, _FromPretrained):
    """Images alone to squares (`idefics.processor.square_image.SquareImageProcessor`)."""


class IdeficsProcessor(idefics1.IdeficsProcessor, _FromPretrained):
    """Prompts of texts, URLs and images to inputs (`idefics.processor.idefics1.IdeficsProcessor`)."""
