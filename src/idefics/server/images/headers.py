"""What an encoded image costs, by what it says of itself: bounded before a library takes its word for it."""

from __future__ import annotations

from idefics.server.images.avif import check_avif
from idefics.server.images.bmp import check_bmp
from idefics.server.images.gif import check_gif
from idefics.server.images.jpeg import check_jpeg
from idefics.server.images.png import check_png
from idefics.server.images.tiff import check_tiff
from idefics.server.images.webp import check_webp
from idefics.server.limits import ServerLimits

__all__ = ["check_header"]

_BY_BEGINNING = {
    b"\x89PNG": check_png,
    b"\xff\xd8": check_jpeg,
    b"GIF8": check_gif,
    b"BM": check_bmp,
    b"II": check_tiff,
    b"MM": check_tiff,
    b"RIFF": check_webp,
}


def check_header(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds segments, chunks, blocks, boxes, tags and tiles, in a time linear in the data.

    Args:
        data: encoded.
        limits: of the server.
        where: what messages call the image.

    Raises:
        ImageError: there are more than allowed; says which.
    """
    if data[4:8] == b"ftyp":
        check_avif(data, limits, where)  # and more: lengths and sizes of other formats can read like this
    for beginning, check in _BY_BEGINNING.items():
        if data.startswith(beginning):
            check(data, limits, where)
