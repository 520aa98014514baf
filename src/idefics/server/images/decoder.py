"""Bytes of strangers to Pillow images, at a bounded price."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import AvifImagePlugin, Image

from idefics.errors import ImageError
from idefics.processor.encoded import STRANGERS, opened
from idefics.processor.fetch import upright_image
from idefics.server.images.headers import check_header
from idefics.server.images.jpeg import scans
from idefics.server.limits import ServerLimits

__all__ = ["Decoder", "Left", "begun"]

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
        check_header(data, self._limits, where)
        image = opened(data, where, pixels=self._limits.image_pixels, formats=STRANGERS)
        stated = image.width * image.height
        self._count(stated)
        if image.format in ("JPEG", "MPO"):
            self._check_scans(scans(data, enough=self._limits.jpeg_scans), stated, where)
        elif image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg"):
            self._charge(scans(data, enough=_TIFF_SCANS), stated)
        try:
            image = upright_image(image)
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from None
        if image.width * image.height > stated:
            raise ImageError(f"{where} has {image.width}x{image.height} pixels, more than its header states ({stated})")
        return image

    def _count(self, pixels: int) -> None:
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
