"""How much prepared images may take up in all requests together."""

from __future__ import annotations

import threading
import weakref
from collections import deque

from idefics.processor.prepared import PreparedImage
from idefics.server.errors import Overloaded

__all__ = ["PixelBudget"]


class PixelBudget:
    """Bytes of prepared images that a worker or a request still holds, or the engine where it is in the same process.

    Args:
        limit: of all together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held = 0
        # What is let go of, in whatever thread and at whatever moment: only an append, as a lock might be held right there.
        self._returned: deque[int] = deque()

    def take(self, image: PreparedImage) -> None:
        """Counts an image until nothing refers to its parts any more.

        Raises:
            Overloaded: there is no room for it now.
        """
        size = sum(part.levels_CHW.nbytes for part in image.parts)
        with self._lock:
            while self._returned:
                self._held -= self._returned.popleft()
            if self._held + size > self._limit:
                raise Overloaded("Model is overloaded")
            self._held += size
        for part in image.parts:
            weakref.finalize(part, self._returned.append, part.levels_CHW.nbytes).atexit = False
