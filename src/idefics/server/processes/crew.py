"""A few threads that work for event loops, and tell how long they have been at it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from idefics.server.errors import Closing
from idefics.server.processes.turns import Turns

__all__ = ["Crew"]

Result = TypeVar("Result")


class Crew:
    """Threads for what is slow.

    Work waits for a free thread in a line of coroutines and not in the threads' queue, which keeps what it holds though
    nobody wants it any more. A thread is free again when its work is done, even if that work was abandoned.

    Args:
        size: threads.
        name: of them.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._turns = Turns(size)
        self._began: dict[object, float] = {}  # by work that is being done; changed in any thread, by single operations

    async def do(self, work: Callable[[], Result], *, left: Callable[[], None] = lambda: None) -> Result:
        """Runs something slow beside the event loop.

        Args:
            work: what is run.
            left: called in the event loop if nobody waits for it any more while it runs.

        Raises:
            Closing: there are no threads any more.
            Exception: what the work raised.
        """
        await self._turns.take()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def settle(job: Future[Result]) -> None:
            if done.done():
                return
            if job.cancelled():
                done.set_exception(Closing("the server is stopping"))
            elif (error := job.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(job.result())

        def ended(job: Future[Result]) -> None:
            self._began.pop(done, None)
            self._turns.give()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, job)

        self._began[done] = time.monotonic()
        try:
            job = self._threads.submit(contextvars.copy_context().run, work)
        except RuntimeError:
            del self._began[done]
            self._turns.give()
            raise Closing("the server is stopping") from None
        del work  # with what it holds
        job.add_done_callback(ended)
        del job
        try:
            return await done
        except asyncio.CancelledError:
            left()
            raise

    def busy_for(self, seconds: float) -> bool:
        """Whether every thread has been at the same work for longer than this."""
        since = time.monotonic() - seconds
        return sum(began < since for began in list(self._began.values())) >= self.size

    def close(self) -> None:
        """Lets go of the threads; what they do is finished, what waits is not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
