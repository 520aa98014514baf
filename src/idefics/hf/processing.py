"""The processors with the reference's way of loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from idefics.hf.hub import folder_of
from idefics.processor import idefics2
from idefics.processor.image import ImageProcessor

__all__ = ["Idefics2ImageProcessor", "Idefics2Processor"]


class Idefics2ImageProcessor(ImageProcessor):
    """Images alone to pixels: alpha is composited on white and EXIF ignored, as the reference does without text."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Reads a folder or Hub id; other options override fields, e.g. `size=` or `do_image_splitting=`."""
        return cls.from_folder(folder_of(pretrained_model_name_or_path, options, weights=False), **options)


class Idefics2Processor(idefics2.Idefics2Processor):
    """Texts and images to inputs (`idefics.processor.idefics2.Idefics2Processor`)."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Reads a folder or Hub id; other options override, e.g. `size=`, `do_image_splitting=` or `image_seq_len=`."""
        return cls.from_folder(folder_of(pretrained_model_name_or_path, options, weights=False), **options)
