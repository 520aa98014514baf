"""What a JPEG costs before and while it is decoded, without decoding it.

Pillow joins the segments before the picture one by one, and reads the Exif among them, so thousands of small ones keep it busy
for minutes. A progressive JPEG refines the whole image with every scan, and a scan that refines nothing takes 23 bytes: a file
of a few kilobytes can keep a decoder busy for minutes, however few pixels its header states.
"""

from __future__ import annotations

import re

from idefics.errors import ImageError
from idefics.server.images.tiff import check_exif
from idefics.server.limits import ServerLimits

__all__ = ["check_jpeg", "scans"]

_EXIF = b"Exif\0\0"
_EXIFS = 4
"""Segments of Exif. The standard has one; what does not fit in it goes elsewhere."""

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a segment
_SEGMENTS = frozenset(range(0xC0, 0xFF)) - _ALONE
# Entropy-coded data holds FF 00 and restart markers (FF D0 to FF D7) only; a run of FF is padding before a marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# What Pillow makes of bytes before the first scan: any marker at all, of which some have no segment to it.
_ANY_MARKER = re.compile(rb"\xff[^\x00\xff]")
_FIRST_MARKER = 0xC0
"""What is below is no marker to Pillow, which then reads no further."""
_READ_SEGMENTS = _SEGMENTS - {0xC8, *range(0xF0, 0xFE)}


def scans(data: bytes, *, enough: int) -> int:
    """How many scans libjpeg would decode; above `enough` they are not counted on.

    Takes time linear in the data: counting the two bytes that every scan begins with never gives too few. Only where that
    gives more than `enough`, as other pictures, films and profiles within the file hold such bytes too, segments are walked.

    >>> scans(b"\\xff\\xd8" + b"\\xff\\xda\\x00\\x02ab" * 3 + b"\\xff\\xd9\\xff\\xda", enough=2)
    3
    """
    found = data.count(bytes((0xFF, _START_OF_SCAN)))
    if found <= enough:
        return found
    found, at = 0, 2
    while found <= enough and (marker := _MARKER.search(data, at)):
        at = marker.end()
        kind = data[at - 1]
        if kind == _END_OF_IMAGE:
            break
        if kind == _START_OF_SCAN:
            found += 1
        elif kind in _SEGMENTS:
            at += max(2, int.from_bytes(data[at : at + 2]))
    return found


def check_jpeg(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds what stands before the first scan: segments, other markers, and bytes that are neither.

    It walks as Pillow does (`JpegImageFile._open`): past ends of images too, and where a marker has a segment for Pillow.

    Raises:
        ImageError: there are too many, or the Exif among them is too large.
    """
    at, found, stray, exif = 2, 0, 0, []
    while marker := _ANY_MARKER.search(data, at, at + limits.jpeg_stray_bytes + 2 - stray):
        kind = data[marker.end() - 1]
        if kind < _FIRST_MARKER or kind == _START_OF_SCAN:
            break
        stray += marker.start() - at
        found += 1
        at = marker.end()
        size = max(2, int.from_bytes(data[at : at + 2])) if kind in _READ_SEGMENTS else 0
        if size and data.startswith(_EXIF, at + 2):
            exif.append(data[at + 2 : at + size])
        if found > limits.jpeg_segments or len(exif) > _EXIFS:
            raise ImageError(
                f"{where} is a JPEG of more segments than the limit of {limits.jpeg_segments}, {_EXIFS} of them Exif; "
                "save it without its metadata"
            )
        at += size
    if marker is None and stray + len(data) - at > limits.jpeg_stray_bytes:
        raise ImageError(
            f"{where} is a JPEG of more bytes between its segments than the limit of {limits.jpeg_stray_bytes}; save it anew"
        )
    if exif:
        check_exif(b"".join((exif[0], *(more.removeprefix(_EXIF) for more in exif[1:]))), limits, where)
