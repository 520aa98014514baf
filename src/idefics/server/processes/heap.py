"""What of a process's memory is in use, as the C library counts it."""

from __future__ import annotations

import ctypes

__all__ = ["bytes_in_use"]

_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _COUNTS)


_told = getattr(ctypes.CDLL(None), "mallinfo2", None)
if _told is not None:
    _told.restype = _Info


def bytes_in_use() -> int:
    """Bytes that were asked for and not given back, in a process of one heap (`MALLOC_ARENA_MAX=1`); 0 where nothing counts.

    Unlike pages, which stay with a process, these do not depend on what it did before.
    """
    if _told is None:
        return 0
    info = _told()
    return int(info.uordblks + info.hblkhd)
