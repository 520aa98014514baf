"""What a BMP costs before it is decoded."""

from __future__ import annotations

from idefics.errors import ImageError
from idefics.server.limits import ServerLimits

__all__ = ["check_bmp"]

_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes of every kind of header that there is
_RUN_LENGTHS = (1, 2)


def check_bmp(data: bytes, limits: ServerLimits, where: str) -> None:
    """Bounds the header, and pixels and bytes of runs, which Pillow decodes in Python.

    Raises:
        ImageError: they are beyond the bounds.
    """
    if len(data) < 34:
        return
    header = int.from_bytes(data[14:18], "little")
    if header not in _HEADERS:
        raise ImageError(f"{where} is a BMP with a header of {header} bytes, of which there is no kind; save it anew")
    if header == 12 or int.from_bytes(data[30:34], "little") not in _RUN_LENGTHS:
        return
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    most = limits.rle_pixels
    if abs(width * height) > most or len(data) > 2 * most:
        raise ImageError(
            f"{where} is a BMP of {abs(width)}x{abs(height)} pixels in runs and {len(data)} bytes, over the limits of "
            f"{most} pixels and {2 * most} bytes for those; save it as a PNG"
        )
