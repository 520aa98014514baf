"""What a PNG costs before it is decoded: its chunks, and the Exif in one of them."""

from __future__ import annotations

import zlib

from PIL import PngImagePlugin

from idefics.errors import ImageError
from idefics.server.images.tiff import check_exif
from idefics.server.limits import ServerLimits

__all__ = ["check_png"]

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PROFILE = b"Raw profile type exif\0"
"""How Exif was written before it had a chunk of its own: as a text of digits, which Pillow still reads."""
_PROFILES = 4


def check_png(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the chunks, each of which Pillow reads in Python. What texts in them may become, Pillow bounds itself.

    Raises:
        ImageError: there are too many, or the Exif among them is too large.
    """
    at, found, profiles = 8, 0, 0
    while at + 8 <= len(data):
        found += 1
        if found > limits.image_parts:
            raise ImageError(f"{where} is a PNG of more chunks than the limit of {limits.image_parts}; save it anew")
        size = int.from_bytes(data[at : at + 4])
        if data.startswith(_TEXTS, at + 4) and data.startswith(_PROFILE, at + 8):
            profiles += 1
            if profiles > _PROFILES:
                raise ImageError(f"{where} is a PNG of more texts with Exif than the limit of {_PROFILES}; save it anew")
            check_exif(_profile(data[at + 4 : at + 8], data[at + 8 + len(_PROFILE) : at + 8 + size]), limits, where)
        if data.startswith(b"eXIf", at + 4):
            check_exif(data[at + 8 : at + 8 + size], limits, where)
        at += 12 + size


def _profile(kind: bytes, content: bytes) -> bytes:
    """The Exif in a text, if there is any; of packed ones as much as Pillow unpacks."""
    packed = kind == b"zTXt" or (kind == b"iTXt" and content[:1] == b"\1")
    text = content[1:]  # after how it is packed
    if kind == b"tEXt":
        text = content
    elif kind == b"iTXt":
        text = content[2:].split(b"\0", 2)[-1]  # after how it is packed, its language and its keyword
    try:
        if packed:
            text = zlib.decompressobj().decompress(text, PngImagePlugin.MAX_TEXT_CHUNK)
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except (ValueError, zlib.error):
        return b""  # which Pillow makes nothing of either
