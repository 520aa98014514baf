"""A line in which coroutines of any event loop wait for one of a few places."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

__all__ = ["Turns"]


class Turns:
    """Places that are taken in the order of asking.

    Unlike `asyncio.Semaphore`, any thread may give a place back, and whoever waits may be of another event loop.

    Args:
        places: in all.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def take(self) -> None:
        """Waits for a place. Who leaves the line leaves nothing in it."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, turn))
        try:
            await turn
        except BaseException:
            with self._lock:
                if (loop, turn) in self._waiting:
                    self._waiting.remove((loop, turn))
            if turn.done() and not turn.cancelled():
                self.give()
            raise

    def give(self) -> None:
        """Gives a place back, to whoever is first in the line."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                loop, turn = self._waiting.popleft()
            try:
                loop.call_soon_threadsafe(self._grant, turn)
            except RuntimeError:  # that loop is closed: nobody waits there
                continue
            return

    def _grant(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # left in the meantime
            self.give()
        else:
            turn.set_result(None)
