"""Any Pillow mode or array to 8-bit RGB.

Alpha has two treatments because the reference has two: the Idefics2 *processor* drops it (`alpha="drop"`, through
`load_image`), the *image processor* alone lays the image on white (`alpha="white"`).

One deliberate difference: greyscale with more than 8 bits is *scaled* to 8 bits. The reference calls
`convert("RGB")`, which clips instead: nearly every pixel of a 16-bit scan turns white.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from PIL import Image

from idefics.errors import ImageError
from idefics.processor.quiet import quiet

__all__ = ["NAME", "Alpha", "array_to_image", "name_of", "named", "to_rgb"]

NAME = "idefics_name"
"""Key of `Image.info` under which images that we read carry what they were read from; Pillow's own conversions keep it."""
Alpha = Literal["drop", "white"]

_WIDE = 65535


def to_rgb(image: Image.Image, *, alpha: Alpha) -> Image.Image:
    """The image in mode RGB.

    Args:
        image: in any mode Pillow opens.
        alpha: `"drop"` keeps the colours under transparent pixels, `"white"` composites them on white.

    Raises:
        ImageError: the image is empty or its values have no sensible reading as grey levels.
    """
    if image.width < 1 or image.height < 1:
        raise ImageError(f"the image has no pixels ({image.width}x{image.height})")
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_8_bit(image).convert("RGB")
    with quiet():  # of palettes with several transparent colours, which are as good as any
        return _colours_to_rgb(image, alpha)


def name_of(image: Image.Image) -> str:
    """What an image was read from, as far as it knows: a path, a URL; empty where it does not."""
    return str(image.info.get(NAME) or getattr(image, "filename", ""))


@contextmanager
def named(image: Image.Image) -> Iterator[None]:
    """What is wrong with an image is told with the name that it carries, if it does.

    Raises:
        ImageError: as raised within, after the name.
    """
    try:
        yield
    except ImageError as error:
        name = name_of(image)
        if not name or str(error).startswith(name):
            raise
        raise ImageError(f"{name}: {error}") from None


def _colours_to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    if image.mode == "La":  # Pillow converts premultiplied grey to LA only
        image = image.convert("LA")
    if alpha == "drop":
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255)), rgba).convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    grey_HW = np.asarray(image)
    low, high = float(grey_HW.min()), float(grey_HW.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > _WIDE:
        raise ImageError(
            f"the {image.mode} image has values from {low:g} to {high:g}; grey levels of 0..1, 0..255 or 0..65535 "
            "are understood: scale it first"
        )
    if image.mode.startswith("I;16") or high > 255:
        scale = 255 / _WIDE
    elif image.mode == "F" and 0 < high <= 1:
        scale = 255.0
    else:
        return image.convert("L")  # 8-bit levels in a wide mode: as the reference reads them
    return Image.fromarray(np.rint(grey_HW.astype(np.float64) * scale).astype(np.uint8))


def array_to_image(array: Any) -> Image.Image:
    """A Pillow image of an array: (H, W), (H, W, C) or (C, H, W), C one of 1, 3, 4.

    uint8 is taken as it is; floats must lie in 0..1, wider whole numbers in 0..255.

    Raises:
        ImageError: another shape, dtype or range.
    """
    pixels = np.asarray(array)
    if pixels.ndim == 3 and _channels_first(pixels.shape):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)) or 0 in pixels.shape:
        raise ImageError(f"an array of shape {np.shape(array)} is not one image: (H, W), (H, W, C) or (C, H, W) is due")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        pixels = _array_to_8_bit(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _channels_first(shape: tuple[int, ...]) -> bool:
    """(H, W, C) unless only (C, H, W) gives 1 or 3 channels, or else 4."""
    if shape[-1] in (1, 3) or shape[0] in (1, 3):
        return shape[-1] not in (1, 3)
    return shape[-1] != 4 and shape[0] == 4


def _array_to_8_bit(pixels: Any) -> Any:
    floating, whole = np.issubdtype(pixels.dtype, np.floating), np.issubdtype(pixels.dtype, np.integer)
    limit = 1 if floating else 255
    if not (floating or whole) or not (pixels.min() >= 0 and pixels.max() <= limit):
        seen = f"from {pixels.min():g} to {pixels.max():g}" if floating or whole else "of another kind"
        raise ImageError(
            f"an image array of dtype {pixels.dtype} has values {seen}; "
            "uint8, whole numbers in 0..255 or floats in 0..1 are due"
        )
    return np.rint(pixels * (255 if floating else 1)).astype(np.uint8)
