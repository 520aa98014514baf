"""Files read whole, whatever somebody calls a file: devices and pipes have no size, and may never end or never begin."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

__all__ = ["MAX_TEXT_BYTES", "TooLarge", "TooSlow", "expanded", "read_whole"]

MAX_TEXT_BYTES = 256 * 2**20
"""Largest text that is read as a setting, a template or an example: some twenty times the largest tokenizer known."""
MAX_PIPE_BYTES = 64 * 2**20
"""Largest content of what says no size of its own: a pipe, a device, a file of the kernel's."""
PATIENCE = 20.0
"""Seconds that such a thing may take in all."""


class TooLarge(OSError):
    """More bytes than the limit."""


class TooSlow(OSError):
    """Nothing came, or not all of it, within the time."""


def expanded(name: str | Path) -> Path:
    """A path with `~` made the home folder; as it is where nobody has that home, so that it is told as not existing."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def read_whole(path: Path, *, most: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a file.

    Args:
        path: of a file, or of a pipe such as a shell's `<(command)`.
        most: bytes of a file at most; what says no size of its own may have `MAX_PIPE_BYTES`.

    Raises:
        TooLarge: says the limit.
        TooSlow: a pipe's writer, or a device, keeps one waiting.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(0, "it is a folder")
        plain = stat.S_ISREG(state.st_mode) and state.st_size > 0
        if not plain:
            most = min(most, MAX_PIPE_BYTES)
        if plain and state.st_size > most:
            raise TooLarge(0, f"it has {state.st_size} bytes, over the limit of {most}")
        return _read(descriptor, most, waits=not plain)
    finally:
        os.close(descriptor)


def _read(descriptor: int, most: int, *, waits: bool) -> bytes:
    deadline = time.monotonic() + PATIENCE
    content = bytearray()
    while True:
        if waits and os.name == "posix":  # elsewhere only sockets can be waited for
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TooSlow(0, f"it is no plain file, and did not end within {PATIENCE:g} s")
        try:
            piece = os.read(descriptor, 2**20)
        except BlockingIOError:
            time.sleep(0.01)  # woken, and yet nothing there
            continue
        if not piece:
            return bytes(content)
        content += piece
        if len(content) > most:
            raise TooLarge(0, f"it has more bytes than the limit of {most}")
