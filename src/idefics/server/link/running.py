"""One request in the engine, as the event loop sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from idefics.engine.request import Token
from idefics.server.deadlines import ENGINE_SAYS
from idefics.server.errors import ServerError, TimedOut
from idefics.server.link.answers import Said, Sayer
from idefics.server.link.worker import Failed, Outcome

__all__ = ["Message", "Running", "hand_over"]

Message = Said | ServerError | None
"""What is said, or why no more will be, or that the engine has taken the request in, and in the end that all is said."""


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
        texts: Sequence[Sayer],
        *,
        streams: bool,
        deadline: float,
        done: Callable[[], None],
        cancelled: Callable[[], None],
    ) -> None:
        self.answers = len(texts)
        self.began = time.monotonic()
        self.added: float | None = None
        self.planned: float | None = None
        self._texts = texts
        self._streams = streams
        self._deadline = deadline
        self._kept: list[Message] = []  # until the last answer is whole
        self._open = set(range(len(texts)))
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
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
            message = await self._next()
            if message is None:
                return
            if isinstance(message, ServerError):
                raise message
            yield message

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
            self._cancelled()

    @property
    def whole(self) -> bool:
        """Whether no more will be heard of it."""
        return not self._open

    def heard(self, outcome: Outcome, *, at: float) -> list[tuple[Running, Message]]:
        """Called in the thread that reads reports; returns what the event loop should be told now."""
        message: Message = None
        if isinstance(outcome, Token):
            self.planned = self.planned or outcome.planned
            message = self._texts[outcome.candidate].said(outcome, at=at)
            if outcome.finish is not None:
                self._open.discard(outcome.candidate)
        elif isinstance(outcome, Failed):
            message = outcome.error
            self._open -= self._open if outcome.candidate is None else {outcome.candidate}
        else:
            self.added = at
        if message is not None and not self._streams:
            self._kept.append(message)
            return [(self, kept) for kept in self._kept] if self.whole else []
        return [(self, message)]

    def put(self, message: Message) -> None:
        """Called in the event loop with what happened."""
        self._queue.put_nowait(message)

    def end(self) -> None:
        """Called in the event loop when the engine has no more to say."""
        self._ended = True
        if self._done is not None:
            done, self._done = self._done, None
            done()

    async def _next(self) -> Message:
        left = self._deadline + ENGINE_SAYS - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await self._queue.get()
        except TimeoutError:
            raise TimedOut("the request's time is over") from None


def hand_over(told: Sequence[tuple[Running, Message]], ended: Sequence[Running]) -> None:
    """Called in the event loop with what happened, and with the requests of which no more will."""
    for running, message in told:
        running.put(message)
    for running in ended:
        running.put(None)
        running.end()
