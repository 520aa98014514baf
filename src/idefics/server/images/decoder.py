"""Bytes of strangers to Pillow images, at a bounded price."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from idefics.errors import ImageError
from idefics.processor.fetch import upright_image
from idefics.processor.quiet import quiet
from idefics.server.images.headers import check_header
from idefics.server.images.jpeg import scans
from idefics.server.limits import ServerLimits

__all__ = ["Decoder", "Left", "begun"]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow reads forty more, which nobody sends and strangers can play with: some are envelopes of others, one is a program."""
_TIFF_SCANS = 100
"""Of each JPEG in a TIFF, after which libtiff gives up. Large TIFFs hold many, so their scans in all tell nothing."""


def begun() -> None:
    """Makes a process ready to decode: its plugins are loaded, and it works in one thread, as there are several of them."""
    Image.init()
    if "AVIF" in Image.OPEN:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a request's images may still cost.

    Attributes:
        pixels: as `ServerLimits.request_pixels`.
        scan_pixels: as `ServerLimits.scan_pixels`.
    """

    pixels: int
    scan_pixels: int

    @classmethod
    def of(cls, limits: ServerLimits) -> Left:
        """What it is before the first."""
        return cls(pixels=limits.request_pixels, scan_pixels=limits.scan_pixels)


class Decoder:
    """Decodes the images of one request as the processor reads them, once their headers promise no more than allowed.

    Args:
        limits: of pixels and scans.
        left: of them, for this request; None: all.

    Attributes:
        left: after the images so far.
    """

    def __init__(self, limits: ServerLimits, left: Left | None = None) -> None:
        self._limits = limits
        self.left = Left.of(limits) if left is None else left

    def image(self, data: bytes, where: str) -> Image.Image:
        """One image, upright and RGB.

        Args:
            data: encoded.
            where: what messages call it.

        Raises:
            ImageError: bytes that are no image, or one of too many pixels, scans or parts; says which.
        """
        opened = self._opened(data, where)
        stated = opened.width * opened.height
        self._check_pixels(stated, f"{opened.width}x{opened.height}", where)
        if opened.format in ("JPEG", "MPO"):
            self._check_scans(scans(data, enough=self._limits.jpeg_scans), stated, where)
        elif opened.format == "TIFF" and opened.info.get("compression") in ("jpeg", "tiff_jpeg"):
            self._charge(scans(data, enough=_TIFF_SCANS), stated)
        try:
            image = upright_image(opened)
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from None
        if image.width * image.height > stated:
            raise ImageError(f"{where} has {image.width}x{image.height} pixels, more than its header states ({stated})")
        return image

    def _opened(self, data: bytes, where: str) -> Image.Image:
        """The image as far as its header tells."""
        if not data:
            raise ImageError(f"{where} is empty (0 bytes), not an image")
        check_header(data, self._limits, where)
        Image.init()
        try:
            with quiet():
                return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            raise ImageError(f"{where} is no image of a known format; give one of {', '.join(_FORMATS)}") from None
        except Image.DecompressionBombError:
            raise ImageError(
                f"{where} has more pixels than the limit of {self._limits.image_pixels}; make it smaller first"
            ) from None
        except Exception as error:  # a damaged file may raise anything from a decoder
            told = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{where} cannot be decoded: {told}") from None

    def _check_pixels(self, pixels: int, told: str, where: str) -> None:
        if pixels > self._limits.image_pixels:
            raise ImageError(f"{where} has {told} pixels, over the limit of {self._limits.image_pixels}; make it smaller first")
        self.left = replace(self.left, pixels=self.left.pixels - pixels)
        if self.left.pixels < 0:
            raise ImageError(
                f"the images of this request have over {self._limits.request_pixels} pixels together; make them smaller"
            )

    def _check_scans(self, count: int, pixels: int, where: str) -> None:
        if count > self._limits.jpeg_scans:
            raise ImageError(
                f"{where} is a JPEG of more scans than the limit of {self._limits.jpeg_scans}; save it as a baseline JPEG"
            )
        self._charge(count, pixels)

    def _charge(self, count: int, pixels: int) -> None:
        self.left = replace(self.left, scan_pixels=self.left.scan_pixels - count * pixels)
        if self.left.scan_pixels < 0:
            raise ImageError(
                f"the JPEGs of this request have over {self._limits.scan_pixels} pixels times scans together; "
                "save them as baseline JPEGs, or make them smaller"
            )
