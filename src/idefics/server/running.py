"""One request in the engine, as the event loop sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from idefics.server.answers import AnswerText, Said
from idefics.server.errors import ServerError, TimedOut

__all__ = ["Outcome", "Running", "hand_over"]

Outcome = Said | ServerError | None
GRACE = 2.0  # seconds after a deadline in which the engine itself may say so


class Running:
    """One request in the engine: iterate over it for what it says, and `cancel` it in any case.

    Attributes:
        answers: how many it has.
        began: `time.monotonic` when it was handed over.
        added: when the engine took it in; None before.
        planned: when the engine began with its prompt; None before.
    """

    def __init__(
        self,
        texts: Sequence[AnswerText],
        *,
        streams: bool,
        deadline: float,
        done: Callable[[], None],
        cancelled: Callable[[Running], None],
    ) -> None:
        self.answers = len(texts)
        self.began = time.monotonic()
        self.added: float | None = None
        self.planned: float | None = None
        self.number: int | None = None
        self.texts = texts
        self.streams = streams
        self.deadline = deadline
        self.kept: list[Outcome] = []  # in the engine's thread, until the answer is whole
        self.open = set(range(len(texts)))
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue()
        self._done: Callable[[], None] | None = done
        self._cancelled = cancelled
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[Said]:
        """Yields tokens of all answers until all have ended.

        Raises:
            TimedOut: the deadline came first.
            GenerationFailed, Invalid: the engine could not go on, or did not take the request.
            Closing: the server stopped, or the engine was given up.
        """
        while not self._ended or not self._queue.empty():
            outcome = await self._next()
            if outcome is None:
                return
            if isinstance(outcome, ServerError):
                raise outcome
            yield outcome

    async def taken(self) -> None:
        """Waits until the engine has taken the request in or refused it."""
        first = await self._next()
        if isinstance(first, ServerError):
            raise first
        assert first is None, "a token before the engine took the request"

    def cancel(self) -> None:
        """Ends the request if it has not ended; costs nothing if it has."""
        if not self._ended:
            self.end()
            self._cancelled(self)

    def put(self, outcome: Outcome) -> None:
        """Called in the event loop with what happened."""
        self._queue.put_nowait(outcome)

    def end(self) -> None:
        """Called in the event loop when the engine has no more to say."""
        self._ended = True
        if self._done is not None:
            done, self._done = self._done, None
            done()

    async def _next(self) -> Outcome:
        left = self.deadline + GRACE - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await self._queue.get()
        except TimeoutError:
            raise TimedOut("the request's time is over") from None


def hand_over(told: Sequence[tuple[Running, Outcome]], ended: Sequence[Running]) -> None:
    """Called in the event loop with what happened, and with the requests of which no more will."""
    for running, outcome in told:
        running.put(outcome)
    for running in ended:
        running.put(None)
        running.end()
