"""Pillow's warnings about odd files, silenced while we decode: what matters becomes an `ImageError`, the rest is noise.

`warnings.catch_warnings` alone is not safe with threads: two that overlap can leave the filters changed for good. So the
first to enter silences and the last to leave restores.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

_lock = threading.Lock()
_inside = 0
_saved = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings inside, whatever the filters; any number of threads may be inside at once."""
    global _inside
    with _lock:
        if _inside == 0:
            _saved.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _saved.close()
