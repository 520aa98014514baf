"""The processors with the reference's way of loading them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol, Self

from idefics.errors import OptionError
from idefics.hf.elsewhere import asks_for_nothing, refuse_attribute
from idefics.hf.hub import folder_of
from idefics.processor import idefics1, idefics2
from idefics.processor.image import ImageProcessor
from idefics.processor.square_image import SquareImageProcessor

__all__ = ["Idefics2ImageProcessor", "Idefics2Processor", "IdeficsImageProcessor", "IdeficsProcessor"]


_OF_MODELS = ("torch_dtype", "dtype", "device_map", "attn_implementation", "_attn_implementation")


class _FromFolder(Protocol):
    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self: ...


class _FromPretrained(_FromFolder):
    """What is read from a folder, read from the Hub too."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Reads a folder or Hub id; other options override fields, e.g. `size=` or `image_size=`.

        What is meant for a model and passed to both (`torch_dtype`, `device_map`, ...) has no effect.
        """
        folder = folder_of(pretrained_model_name_or_path, options, weights=False)
        left = {name: value for name, value in options.items() if name not in _OF_MODELS}
        return cls.from_folder(folder, **{name: value for name, value in left.items() if not asks_for_nothing(name, value)})

    def __getattr__(self, name: str) -> Any:
        refuse_attribute(type(self).__name__, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)


class _Settable:
    """Settings that scripts assign after loading, as the reference lets them: checked like those given at loading."""

    def __setattr__(self, name: str, value: Any) -> None:
        changed = dataclasses.replace(self, **{name: value}) if name in _settings(self) else None  # type: ignore[type-var]
        if changed is None:
            raise OptionError(f"{type(self).__name__} has no setting {name!r}; there are {', '.join(_settings(self))}")
        for kept, content in vars(changed).items():
            object.__setattr__(self, kept, content)


def _settings(images: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(images) if field.init)


class Idefics2ImageProcessor(_Settable, ImageProcessor, _FromPretrained):
    """Images alone to pixels: alpha is composited on white and EXIF ignored, as the reference does without text.

    >>> images = Idefics2ImageProcessor(do_image_splitting=True)
    >>> images.do_image_splitting = False  # the same as `do_image_splitting=False` at loading or in a call
    """


class Idefics2Processor(idefics2.Idefics2Processor, _FromPretrained):
    """Texts and images to inputs (`idefics.processor.idefics2.Idefics2Processor`)."""

    images_class = Idefics2ImageProcessor


class IdeficsImageProcessor(_Settable, SquareImageProcessor, _FromPretrained):
    """Images alone to squares (`idefics.processor.square_image.SquareImageProcessor`)."""


class IdeficsProcessor(idefics1.IdeficsProcessor, _FromPretrained):
    """Prompts of texts, URLs and images to inputs (`idefics.processor.idefics1.IdeficsProcessor`)."""

    images_class = IdeficsImageProcessor
