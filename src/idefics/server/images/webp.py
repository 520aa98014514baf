"""What a WebP costs before it is decoded: its chunks, and the Exif in one of them."""

from __future__ import annotations

from idefics.errors import ImageError
from idefics.server.images.tiff import check_exif
from idefics.server.limits import ServerLimits

__all__ = ["check_webp"]


def check_webp(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the chunks. Of frames only the first is decoded.

    Raises:
        ImageError: there are too many, or the Exif among them is too large.
    """
    at, found = 12, 0
    while at + 8 <= len(data):
        found += 1
        if found > limits.image_parts:
            raise ImageError(f"{where} is a WebP of more chunks than the limit of {limits.image_parts}; save its first frame")
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data.startswith(b"EXIF", at):
            check_exif(data[at + 8 : at + 8 + size], limits, where)
        at += 8 + size + size % 2
