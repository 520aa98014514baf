"""Every error that a user of `idefics` can meet, in one tree.

::

    IdeficsError
    ├── ConfigError          a config.json that cannot be honoured (unknown, missing or contradictory keys)
    ├── CheckpointError      files that are not the checkpoint they should be
    │   ├── CheckpointNotFound   no such folder, file, shard, Hub id or revision; or no network to look for it
    │   ├── Quantised            weights in fewer bits, by a scheme that is not read; it is named
    │   ├── TensorMismatch       missing, extra or wrong-shaped tensors, all of them named
    │   └── UnsafeCheckpoint     pickle weights: refused, because loading them runs code
    ├── InputError           what the user hands over: prompts, images, options
    │   ├── ImageError           an image that cannot be opened, fetched or used
    │   ├── ImageCountError      images and `<image>` placeholders do not match; both numbers are named
    │   ├── TemplateError        messages or a chat template that cannot be rendered
    │   └── OptionError          unknown, out of range or contradictory options
    │       └── NotOffered           what the Hugging Face library offers and this package does not
    ├── NumericsError        NaN or infinite values where numbers were due
    └── OutOfMemory          the machine is too small for the request; says what to reduce

Each message carries the offending value, the limit it broke and what to do about it. Errors about values also derive
from `ValueError`, so that callers who expect Python's own types are served too.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointNotFound",
    "ConfigError",
    "IdeficsError",
    "ImageCountError",
    "ImageError",
    "InputError",
    "NotOffered",
    "NumericsError",
    "OptionError",
    "OutOfMemory",
    "Quantised",
    "TemplateError",
    "TensorMismatch",
    "UnsafeCheckpoint",
]


class IdeficsError(Exception):
    """The root of the tree: `except IdeficsError` catches everything this package raises on purpose."""


class ConfigError(IdeficsError, ValueError):
    """A configuration that cannot be honoured."""


class CheckpointError(IdeficsError):
    """Files that are not the checkpoint they should be."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """No such folder, file, shard, Hub id or revision, or no network to look for it."""


class Quantised(CheckpointError):
    """Weights in fewer bits, by a scheme that is not read."""


class TensorMismatch(CheckpointError):
    """Tensors that are missing, extra or of the wrong shape."""


class UnsafeCheckpoint(CheckpointError):
    """Weights stored as pickle, which would run code when loaded."""


class InputError(IdeficsError, ValueError):
    """Something handed over by the user that cannot be used."""


class ImageError(InputError):
    """An image that cannot be opened, fetched or used."""


class ImageCountError(InputError):
    """The number of images differs from the number of placeholders.

    Args:
        placeholders: `<image>` placeholders counted in the text.
        images: images given.
        where: which prompt, e.g. `"prompt 2"`.
    """

    def __init__(self, *, placeholders: int, images: int, where: str) -> None:
        self.placeholders = placeholders
        self.images = images
        super().__init__(
            f"{where} has {placeholders} image placeholder(s) but {images} image(s) were given; "
            "give exactly one image per placeholder, in reading order"
        )


class TemplateError(InputError):
    """Messages or a chat template that cannot be rendered."""


class OptionError(InputError):
    """An option that is unknown, out of range or contradicts another."""


class NotOffered(OptionError, AttributeError):
    """What the Hugging Face library offers and this package does not. Both load the same folders.

    Args:
        what: was asked for.
        instead: what does the like here.
    """

    def __init__(self, what: str, *, instead: str = "") -> None:
        there = f" ({instead})" if instead else ""
        super().__init__(f"{what} is not offered here{there}; transformers offers it and loads the same folder")


class NumericsError(IdeficsError, ArithmeticError):
    """NaN or infinite values where numbers were due."""


class OutOfMemory(IdeficsError, MemoryError):
    """The machine is too small for the request."""
