"""What a TIFF, and the Exif of any image, which is one, costs before it is decoded.

A tile is decoded whole, however little of it the image shows, and a directory may give any number of tags the same bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from idefics.errors import ImageError
from idefics.server.limits import ServerLimits

__all__ = ["check_exif", "check_tags", "check_tiff"]

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERED = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_RATIONAL, _SIGNED_RATIONAL = 5, 10
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 322, 323
_TWO_WAYS, _CLASSIC = b"MM\0+", b"MM\0*"
"""A BigTIFF in this order is one to libtiff, and a TIFF of the classic kind to Pillow."""
_EXIF = re.compile(rb"(Exif\0\0){0,2}")
_MORE = frozenset({0x8769, 0x8825, 0xA005})  # tags that lead to Exif's, GPS's and interoperability's directories
_DIRECTORIES = 16
_SPARE_BYTES = 2**24
"""Of tags beyond the file's own length: some writers let two share their bytes, and damaged ones point anywhere."""
_NUMBERS = 2**18
"""Of all tags: a large image has an offset and a length per row, each of which becomes a Python number."""
_FRACTIONS = 10_000
"""Of all tags, which become objects of several numbers; honest images have a dozen."""
_TILE_BYTES = 2**26
"""Of one tile beyond what the image's own pixels take: 4,096 x 4,096 RGBA, the largest that writers use."""

_Tag = tuple[int, int, int, int]  # number, type, count, value or offset


def check_tiff(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds a TIFF's tags, and the tiles of its first image.

    Raises:
        ImageError: it has more or larger ones than it may; says which.
    """
    check_tags(data, limits, where)
    if data.startswith(_TWO_WAYS):
        check_tiff(_CLASSIC + data[len(_CLASSIC) :], limits, where)
    at = _first(data)
    tags = [] if at is None else list(_directory(data, at, limits.image_parts))

    def said(number: int) -> list[int]:
        """All values of a tag, of which readers take the first or the last."""
        return [value for tag, _, count, value in tags if tag == number and count == 1]

    width, height = min(said(_WIDTH), default=0), min(said(_HEIGHT), default=0)
    tile_width, tile_height = max(said(_TILE_WIDTH), default=0), max(said(_TILE_HEIGHT), default=0)
    deepest = max((*said(_BITS), *(64 for tag, _, count, _ in tags if tag == _BITS and count > 1)), default=8)
    per_pixel = max(1, max(said(_SAMPLES), default=1) * deepest // 8)
    if tile_width * tile_height * per_pixel > _TILE_BYTES + width * height * per_pixel:
        raise ImageError(
            f"{where} is a TIFF of {width}x{height} pixels in tiles of {tile_width}x{tile_height}, which take more than "
            f"{_TILE_BYTES} bytes besides; save it without tiles"
        )


def check_exif(data: bytes, limits: ServerLimits, where: str) -> None:
    """As `check_tags`, of what may begin with `Exif` and two zeros, once or twice, as Pillow takes it.

    Raises:
        ImageError: as `check_tags`.
    """
    begins = _EXIF.match(data)
    check_tags(data[begins.end() if begins else 0 :], limits, where)


def check_tags(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the tags of a TIFF or of Exif, its own directories included.

    Raises:
        ImageError: they are too many, or hold too much.
    """
    if data.startswith(_TWO_WAYS):
        check_tags(_CLASSIC + data[len(_CLASSIC) :], limits, where)
    first = _first(data)
    waiting, seen = [] if first is None else [first], set[int]()
    found = held = numbers = fractions = 0
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        for tag, kind, count, value in _directory(data, at, limits.image_parts + 1):
            size = count * _SIZES.get(kind, 0)
            room = len(data) if size <= 8 else max(0, len(data) - value)
            read = min(size, room)
            found += 1
            held += read
            if kind in (_RATIONAL, _SIGNED_RATIONAL):
                fractions += read // 8
            elif _SIZES.get(kind, 0) > 1:
                numbers += read // _SIZES[kind]
            if tag in _MORE and len(seen) < _DIRECTORIES:
                waiting.append(value)
            if found > limits.image_parts or held > len(data) + _SPARE_BYTES or numbers > _NUMBERS or fractions > _FRACTIONS:
                raise ImageError(
                    f"{where} has more tags, or larger ones, than allowed ({limits.image_parts} tags, {_NUMBERS} numbers, "
                    f"{_FRACTIONS} fractions, {_SPARE_BYTES} bytes beyond its own); save it without its metadata"
                )


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _is_big(data: bytes) -> bool:
    """Whether it is a BigTIFF, whose numbers are longer."""
    return data[2:4] in (b"+\0", b"\0+")


def _first(data: bytes) -> int | None:
    """Where the first directory is, if there is any."""
    at, form = (8, "Q") if _is_big(data) else (4, "I")
    if data[:2] not in (b"II", b"MM") or len(data) < at + struct.calcsize(form):
        return None
    (first,) = struct.unpack_from(_order(data) + form, data, at)
    return int(first)


def _directory(data: bytes, at: int, most: int) -> Iterator[_Tag]:
    """Its tags, as far as there are any; `most` at most."""
    order, big = _order(data), _is_big(data)
    head, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    head_size, entry_size = struct.calcsize(order + head), struct.calcsize(order + entry)
    if at + head_size > len(data):
        return
    (count,) = struct.unpack_from(order + head, data, at)
    at += head_size
    for number in range(min(count, most)):
        place = at + number * entry_size
        if place + entry_size > len(data):
            return
        tag, kind, values, raw = struct.unpack_from(order + entry, data, place)
        form = _NUMBERED.get(kind, "") if values == 1 else ""
        if not form or struct.calcsize(order + form) > len(raw):
            form = "Q" if big else "I"  # of where the values are
        yield tag, kind, values, struct.unpack_from(order + form, raw)[0]
