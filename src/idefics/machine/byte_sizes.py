"""Numbers of bytes as people read and write them."""

from __future__ import annotations

import re

from idefics.errors import OptionError

__all__ = ["byte_size", "readable_bytes"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?B)?|B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def readable_bytes(count: int) -> str:
    """A size for people, in binary units.

    >>> readable_bytes(16_805_537_248)
    '15.7 GiB'
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def byte_size(size: int | str, *, name: str) -> int:
    """A number of bytes, or a size as written: `5GB` is decimal, `24GiB` and `24G` are binary.

    Args:
        size: to read.
        name: of the option, for the error.

    Raises:
        OptionError: something else, or not from 1 byte to 2**63.

    >>> byte_size("5GB", name="size"), byte_size("1.5 KiB", name="size"), byte_size(300, name="size")
    (5000000000, 1536, 300)
    """
    match = _SIZE.fullmatch(str(size).strip())
    found = 0.0
    if match is not None:
        step = 1000 if (match[3] or "").upper() == "B" else 1024
        found = float(match[1]) * step ** _POWERS[(match[2] or "").upper()]
    if not 1 <= found < 2**63:
        raise OptionError(f"{name} = {size!r} is neither a number of bytes above 0 nor of the form '5GB' or '24GiB'")
    return int(found)
