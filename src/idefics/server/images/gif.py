"""What a GIF costs before it is decoded: what stands before its first frame, the only one that is read."""

from __future__ import annotations

from idefics.errors import ImageError
from idefics.server.limits import ServerLimits

__all__ = ["check_gif"]

_IMAGE, _END, _EXTENSION = b",;!"


def check_gif(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the blocks before the first frame, each of which Pillow reads in Python and joins to the last.

    Raises:
        ImageError: there are too many.
    """
    if len(data) < 13:
        return
    at, found = 13 + (3 * 2 ** (data[10] % 8 + 1) if data[10] & 0x80 else 0), 0
    while at < len(data) and data[at] not in (_IMAGE, _END):
        extension = data[at] == _EXTENSION  # else a byte that is skipped
        found += 1
        at += 1
        if extension:
            at += 1  # its kind
            while at < len(data) and data[at] and found <= limits.image_parts:
                at += 1 + data[at]
                found += 1
            at += 1
        if found > limits.image_parts:
            raise ImageError(f"{where} is a GIF of more blocks than the limit of {limits.image_parts}; save its first frame")
