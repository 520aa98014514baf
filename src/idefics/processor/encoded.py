"""Encoded images opened, as far as their headers tell: the one gate for bytes, whosever they are."""

from __future__ import annotations

import io
from collections.abc import Collection

from PIL import Image, UnidentifiedImageError

from idefics.errors import ImageError
from idefics.processor.quiet import quiet

__all__ = ["STRANGERS", "check_pixels", "opened"]

STRANGERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What strangers may send. Pillow reads forty more, which nobody sends and strangers can play with; people's own files may be
of any of them but `_KEPT_OUT`."""
_KEPT_OUT = frozenset({"EPS", "IPTC"})
"""Formats of Pillow's that are not opened: EPS is a program, and an IPTC file an envelope, whose content is opened as whatever
it says it is, EPS included, and however large it is."""
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")


def opened(data: bytes, name: str, *, pixels: int, formats: Collection[str] | None = None) -> Image.Image:
    """The image, of which nothing is decoded yet.

    Args:
        data: encoded.
        name: what messages call it.
        pixels: width x height at most.
        formats: that are opened; None: all but programs and envelopes.

    Raises:
        ImageError: it is empty, of another format, damaged, or has more pixels.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes), not an image")
    if formats is None and data.startswith(_POSTSCRIPT):
        raise ImageError(f"{name} is PostScript, a program that would be run to draw it; convert it to PNG first")
    try:
        with quiet():
            image = _opened(data, formats)
    except UnidentifiedImageError:
        if formats is None:
            raise ImageError(f"{name} is not an image that Pillow can read") from None
        raise ImageError(f"{name} is no image of a known format; give one of {', '.join(formats)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} holds more pixels than the limit of {pixels}; make it smaller first") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything from a decoder
        told = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} cannot be decoded: {told}") from None
    check_pixels(image, name, pixels)
    return image


def check_pixels(image: Image.Image, name: str, pixels: int) -> None:
    """Bounds width x height.

    Raises:
        ImageError: they are more.
    """
    if image.width * image.height > pixels:
        raise ImageError(f"{name} holds {image.width}x{image.height} pixels, over the limit of {pixels}; make it smaller first")


def _opened(data: bytes, formats: Collection[str] | None) -> Image.Image:
    """As the first format reads it that knows it; the usual ones come first, since to import all takes a while."""

    def known() -> list[str]:
        return [name for name in Image.ID if (name not in _KEPT_OUT if formats is None else name in formats)]

    Image.preinit()
    try:
        return Image.open(io.BytesIO(data), formats=known())
    except UnidentifiedImageError:
        Image.init()
        return Image.open(io.BytesIO(data), formats=known())
