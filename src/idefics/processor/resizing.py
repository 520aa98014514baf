"""Pillow's resizing, one large image by several threads."""

from __future__ import annotations

from PIL import Image

from idefics.machine.cpus import in_parallel

__all__ = ["resized"]

ENOUGH = 2**20
"""Pixels of an image from which a second thread saves more than it costs."""


def resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling, *, threads: int = 1) -> Image.Image:
    """`image.resize(size, resample)`, to the bit.

    Pillow resizes every row, then every column of what came of it, each by itself. So rows can be shared out, then columns,
    but not both at once: a box that begins within the image would move the filter's weights.

    Args:
        image: of any mode; only RGB is shared out, as Pillow brings others to another form before and back after.
        size: (width, height) to become.
        resample: Pillow's filter.
        threads: at most.
    """
    if threads <= 1 or image.mode != "RGB" or image.width * image.height < ENOUGH:
        return image.resize(size, resample)
    width, height = size
    wide, made = Image.new(image.mode, (width, image.height)), Image.new(image.mode, size)

    def rows(first: int, last: int) -> None:
        wide.paste(image.crop((0, first, image.width, last)).resize((width, last - first), resample), (0, first))

    def columns(first: int, last: int) -> None:
        made.paste(wide.crop((first, 0, last, image.height)).resize((last - first, height), resample), (first, 0))

    in_parallel(lambda strip: rows(*strip), _strips(image.height, threads), workers=threads)
    in_parallel(lambda strip: columns(*strip), _strips(width, threads), workers=threads)
    return made


def _strips(length: int, count: int) -> list[tuple[int, int]]:
    """Where so many nearly equal strips begin and end; none is empty."""
    count = min(count, length)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]
