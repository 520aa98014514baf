"""Images of a request: from the URLs in it to Pillow images, at a bounded price."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx
from PIL import Image, UnidentifiedImageError

from idefics.errors import ImageError
from idefics.processor.fetch import upright_image
from idefics.processor.quiet import quiet
from idefics.server.addresses import AddressRule, CheckedNetwork
from idefics.server.downloads import download
from idefics.server.errors import Overloaded
from idefics.server.jpeg import scans
from idefics.server.limits import ServerLimits
from idefics.server.lookups import Lookups, RequestLookups
from idefics.server.references import is_data_url, shortened

__all__ = ["Decoder", "ImageSource"]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow reads forty more, which nobody sends and strangers can play with: some are envelopes of others, one is a program."""
_TIFF_SCANS = 100
"""Of each JPEG in a TIFF, after which libtiff gives up. Large TIFFs hold many, so their scans in all tell nothing."""


class ImageSource:
    """Fetches images by URL.

    Args:
        limits: of bytes, time and redirects.
        rule: where images may be fetched from.
    """

    def __init__(self, limits: ServerLimits, rule: AddressRule) -> None:
        self._limits = limits
        self._rule = rule
        self._lookups = Lookups()
        self._ssl_context = httpx.create_ssl_context()
        self._held = 0

    @asynccontextmanager
    async def fetched(self, references: Sequence[str]) -> AsyncGenerator[Mapping[str, bytes], None]:
        """The encoded images behind the http(s) URLs among the references, which count as held until this is left.

        Raises:
            ImageError: a reference is neither a data URL nor can it be fetched; names it.
            Overloaded: all requests' images are too many bytes together.
        """
        urls = list(dict.fromkeys(reference for reference in references if not is_data_url(reference)))
        for url in urls:
            if not url[:8].lower().startswith(("http://", "https://")):
                raise ImageError(
                    f"{shortened(url)!r} is no image: give an http(s) URL or a data URL (data:image/png;base64,...)"
                )
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > self._limits.held_image_bytes:
                raise Overloaded("Model is overloaded")
            held += size
            self._held += size

        network = CheckedNetwork(self._rule, RequestLookups(self._lookups))
        try:
            yield await download(urls, self._limits, network=network, ssl_context=self._ssl_context, hold=hold)
        finally:
            self._held -= held

    async def close(self) -> None:
        """Lets go of its threads."""
        self._lookups.close()


class Decoder:
    """Decodes the images of one request as the processor reads them, once their headers promise no more than allowed.

    Args:
        limits: of pixels and scans.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._pixels = limits.request_pixels
        self._scan_pixels = limits.scan_pixels

    def image(self, data: bytes, where: str) -> Image.Image:
        """One image, upright and RGB.

        Args:
            data: encoded.
            where: what messages call it.

        Raises:
            ImageError: bytes that are no image, or one of too many pixels or scans; says which.
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
        self._pixels -= pixels
        if self._pixels < 0:
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
        self._scan_pixels -= count * pixels
        if self._scan_pixels < 0:
            raise ImageError(
                f"the JPEGs of this request have over {self._limits.scan_pixels} pixels times scans together; "
                "save them as baseline JPEGs, or make them smaller"
            )
