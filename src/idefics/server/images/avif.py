"""What an AVIF costs before it is decoded: its boxes, and the sizes that they state."""

from __future__ import annotations

from idefics.errors import ImageError
from idefics.server.limits import ServerLimits

__all__ = ["check_avif"]

_INSIDE = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
"""Boxes that hold boxes, and how many bytes stand before them."""


def check_avif(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the boxes, and the pixels of every part of the image: tiles of a grid, transparency, thumbnails.

    Raises:
        ImageError: there are too many.
    """
    ranges, found = [(0, len(data))], 0
    while ranges:
        at, end = ranges.pop()
        while at + 8 <= end:
            found += 1
            if found > limits.image_parts:
                raise ImageError(f"{where} is an AVIF of more boxes than the limit of {limits.image_parts}; save it anew")
            size, kind, head = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], 8
            if size == 1:
                size, head = int.from_bytes(data[at + 8 : at + 16]), 16
            stop = end if size == 0 else min(end, at + max(head, size))
            if kind in _INSIDE:
                ranges.append((at + head + _INSIDE[kind], stop))
            elif kind == b"ispe" and stop - at >= head + 12:
                width, height = (int.from_bytes(data[at + head + place : at + head + place + 4]) for place in (4, 8))
                if width * height > limits.image_pixels:
                    raise ImageError(
                        f"{where} has parts of {width}x{height} pixels, over the limit of {limits.image_pixels}; "
                        "make it smaller first"
                    )
            at = stop
