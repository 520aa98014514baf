"""What a GIF costs before it is decoded: what stands before its first frame, the only one that is read."""

from __future__ import annotations

from idefics.errors import ImageError
from idefics.server.limits import ServerLimits

__all__ = ["check_gif"]

_IMAGE, _END, _EXTENSION = b",;!"
_COMMENT, _APPLICATION, _LOOP = b"\xfe", b"\xff", b"NETSCAPE2.0"


def check_gif(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the blocks before the first frame, each of which Pillow reads in Python and joins to the last.

    Raises:
        ImageError: there are too many.
    """
    if len(data) < 13:
        return
    at, found = 13 + (3 * 2 ** (data[10] % 8 + 1) if data[10] & 0x80 else 0), 0
    while at < len(data) and data[at] not in (_IMAGE, _END):
        found += 1
        if data[at] == _EXTENSION:
            at, more = _blocks(data, at + 1, most=limits.image_parts)
            found += more
        else:
            at += 1  # which is skipped
        if found > limits.image_parts:
            raise ImageError(f"{where} is a GIF of more blocks than the limit of {limits.image_parts}; save its first frame")


def _blocks(data: bytes, at: int, *, most: int) -> tuple[int, int]:
    """Where an extension ends, and how many blocks it has; counted on to `most` alone.

    Pillow reads on after a first block that is empty, except in comments, and likewise after the second one of a loop.

    Args:
        data: encoded.
        at: where the extension's kind stands.
        most: blocks that are counted.
    """
    kind, begins, found = data[at : at + 1], at + 1, 0
    regardless = 0 if kind == _COMMENT else 1
    if kind == _APPLICATION and data[begins : begins + 1] >= bytes((len(_LOOP),)) and data.startswith(_LOOP, begins + 1):
        regardless = 2
    at = begins
    while at < len(data) and found <= most and (data[at] or found < regardless):
        at += 1 + data[at]
        found += 1
    return at + 1, found
