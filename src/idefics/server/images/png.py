"""What a PNG costs before it is decoded: its chunks, and the Exif in one of them."""

from __future__ import annotations

from idefics.errors import ImageError
from idefics.server.images.tiff import check_tags
from idefics.server.limits import ServerLimits

__all__ = ["check_png"]


def check_png(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the chunks, each of which Pillow reads in Python. What texts in them may become, Pillow bounds itself.

    Raises:
        ImageError: there are too many, or the Exif among them is too large.
    """
    at, found = 8, 0
    while at + 8 <= len(data):
        found += 1
        if found > limits.image_parts:
            raise ImageError(f"{where} is a PNG of more chunks than the limit of {limits.image_parts}; save it anew")
        size = int.from_bytes(data[at : at + 4])
        if data.startswith(b"eXIf", at + 4):
            check_tags(data[at + 8 : at + 8 + size].removeprefix(b"Exif\0\0"), limits, where)
        at += 12 + size
