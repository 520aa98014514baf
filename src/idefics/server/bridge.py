"""Between asyncio and the engine: one thread owns the engine, and only it calls `add`, `step` and `cancel`.

Requests reach the thread through an inbox. What happens to them goes back to each one's queue in the event loop: all of a
step in one message, or, where nobody wants tokens one by one, all of an answer when it ends. The event loop never waits for
a step, so `/health` and `/metrics` answer whatever the engine does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from idefics.engine.request import Ended, Event, StopCheck
from idefics.engine.sampling import LogitFilter
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.processor.tokenizer import Tokenizer
from idefics.server.answers import AnswerText, Said
from idefics.server.errors import Closing, GenerationFailed, ServerError, TimedOut, as_server_error
from idefics.server.requests import Prepared

__all__ = ["Bridge", "EngineLike", "Running"]

Result = TypeVar("Result")
Outcome = Said | ServerError | None

log = logging.getLogger(__name__)
GRACE = 2.0  # seconds after a deadline in which the engine itself may say so
FAILURES = 3  # steps in a row that fail for no request's fault, after which the engine counts as dead


class EngineLike(Protocol):
    """What the server needs of an engine; tests put another in its place."""

    @property
    def busy(self) -> bool:
        """Whether any answer is unfinished."""
        ...

    def add(
        self,
        inputs: ModelInputs,
        params: SamplingParams,
        *,
        stops: Sequence[StopCheck] | None = None,
        guides: Sequence[LogitFilter] | None = None,
        deadline: float | None = None,
    ) -> int:
        """Takes in a prompt and returns its number."""
        ...

    def step(self) -> list[Event]:
        """One pass."""
        ...

    def cancel(self, number: int) -> list[Event]:
        """Ends a request."""
        ...


class Running:
    """One request in the engine: iterate over it for what it says, and `cancel` it in any case.

    Attributes:
        answers: how many it has.
        began: `time.monotonic` when it was handed over.
        added: when the engine took it in; None before.
    """

    def __init__(
        self, bridge: Bridge, texts: Sequence[AnswerText], *, streams: bool, deadline: float, done: Callable[[], None]
    ) -> None:
        self.answers = len(texts)
        self.began = time.monotonic()
        self.added: float | None = None
        self.number: int | None = None
        self.texts = texts
        self.streams = streams
        self.deadline = deadline
        self.kept: list[Outcome] = []  # in the engine's thread, until the answer is whole
        self.open = set(range(len(texts)))
        self._bridge = bridge
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue()
        self._done: Callable[[], None] | None = done
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[Said]:
        """Yields tokens of all answers until all have ended.

        Raises:
            TimedOut: the deadline came first.
            GenerationFailed, Invalid: the engine could not go on, or did not take the request.
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
            self._bridge.cancel(self)

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


class Bridge:
    """The engine's thread and the ways to it.

    Args:
        engine: used by this thread alone from `start` on.
        tokenizer: of the model.
        stuck_after: seconds of one step after which the engine counts as stuck.
        stepped: told the seconds and the number of tokens of each step, in the engine's thread.
    """

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: Tokenizer,
        *,
        stuck_after: float,
        stepped: Callable[[float, int], None] = lambda _seconds, _tokens: None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stuck_after = stuck_after
        self._stepped = stepped
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._running: dict[int, Running] = {}
        self._closing = False
        self._busy_since: float | None = None
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to work; called in the event loop that requests come from."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self, *, drain: float) -> None:
        """Takes no more requests, lets those that run end for so many seconds, and stops the thread."""
        until = time.monotonic() + drain
        self._closing = True
        while self._running and self._thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._post(self._drop_all)
        while self._thread.is_alive() and time.monotonic() < until + GRACE:
            await asyncio.sleep(0.02)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and gets on with its work."""
        since = self._busy_since
        stuck = since is not None and time.monotonic() - since > self._stuck_after
        return self._thread.is_alive() and not stuck and self._failures < FAILURES

    @property
    def closing(self) -> bool:
        """Whether no more requests are taken."""
        return self._closing

    @property
    def requests(self) -> int:
        """Requests in the engine."""
        return len(self._running)

    async def ask(self, prepared: Prepared, *, streams: bool, deadline: float, done: Callable[[], None]) -> Running:
        """Hands a request to the engine and waits until it is taken in.

        Args:
            prepared: the request.
            streams: tell each token at once, not all in the end, which costs the event loop less.
            deadline: in seconds of `time.monotonic`.
            done: called once when the engine is done with it.

        Raises:
            Closing: the server is stopping, or the engine is stuck or dead.
            Invalid: the engine cannot take it.
            TimedOut: the deadline came first.
        """
        if self._closing or not self.healthy:
            done()
            raise Closing("the server is stopping" if self._closing else "the engine does not answer; try again later")
        asked = prepared.asked
        texts = [
            AnswerText(self._tokenizer, stop=prepared.stop, stop_ids=prepared.stop_ids, keep_stop=asked.keep_stop)
            for _ in range(prepared.params.candidates)
        ]
        running = Running(self, texts, streams=streams, deadline=deadline, done=done)
        self._post(lambda: self._add(running, prepared))
        try:
            await running.taken()
        except BaseException:
            running.cancel()
            raise
        return running

    async def run(self, work: Callable[[], Result]) -> Result:
        """Runs something with the model between two steps.

        Raises:
            GenerationFailed: it failed.
        """
        assert self._loop is not None, "not started"
        loop = self._loop
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: ServerError | None) -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            if future.cancelled():
                return
            try:
                result = work()
            except Exception as error:
                log.exception("work beside the engine failed")
                failed = as_server_error(error)
                self._tell(lambda: settle(None, failed))
            else:
                self._tell(lambda: settle(result, None))

        self._post(job)
        return await future

    def cancel(self, running: Running) -> None:
        """Ends a request that nobody wants any more."""
        self._post(lambda: self._cancel(running))

    def _post(self, job: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()

    def _tell(self, message: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(message)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._closing = True

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._inbox and not self._engine.busy:
                    if self._closing and not self._running:
                        return
                    self._wake.wait(timeout=0.5)
                jobs, self._inbox = self._inbox, []
            self._busy_since = time.monotonic()
            for job in jobs:
                job()
            if self._engine.busy:
                self._step()
            self._busy_since = None
            if self._failures >= FAILURES:
                log.critical("the engine failed %d times in a row and is given up; restart the server", FAILURES)
                return

    def _step(self) -> None:
        began = time.monotonic()
        try:
            events = self._engine.step()
        except Exception as error:  # no request's own fault: the engine tells those in their events
            self._failures += 1
            log.exception("a step failed")
            self._fail_all(GenerationFailed(f"the engine failed: {type(error).__name__}; the server's log tells more"))
            return
        self._failures = 0
        outcomes = [self._outcome(event) for event in events]
        self._stepped(time.monotonic() - began, sum(isinstance(said, Said) for _, said in outcomes))
        known = [(running, outcome) for running, outcome in outcomes if running is not None]
        ended = self._ended(known)
        told = [(running, outcome) for running, outcome in known if running.streams]
        for running, outcome in known:
            if not running.streams:
                running.kept.append(outcome)
        for running in ended:
            told += [(running, outcome) for outcome in running.kept]
        if told:
            self._tell(lambda: _hand_over(told, ended))

    def _outcome(self, event: Event) -> tuple[Running | None, Outcome]:
        running = self._running.get(event.row)
        if running is None:
            return None, None
        if isinstance(event, Ended):
            running.open.discard(event.candidate)
            if event.finish == "deadline":
                return running, TimedOut("the request's time is over")
            return running, as_server_error(event.error or GenerationFailed(f"the request was {event.finish}"))
        if event.finish is not None:
            running.open.discard(event.candidate)
        return running, running.texts[event.candidate].said(event)

    def _ended(self, known: Sequence[tuple[Running, Outcome]]) -> list[Running]:
        ended = []
        for running, _ in known:
            if not running.open and running.number in self._running:
                del self._running[running.number]
                ended.append(running)
        return ended

    def _add(self, running: Running, prepared: Prepared) -> None:
        try:
            running.number = self._engine.add(
                prepared.inputs,
                prepared.params,
                stops=[text.stop for text in running.texts],
                guides=prepared.guides,
                deadline=running.deadline,
            )
        except Exception as error:
            failed = as_server_error(error)
            if isinstance(failed, GenerationFailed):
                log.exception("a request could not be taken in")
            self._tell(lambda: _hand_over([(running, failed)], [running]))
            return
        running.added = time.monotonic()
        self._running[running.number] = running
        self._tell(lambda: running.put(None))

    def _cancel(self, running: Running) -> None:
        if running.number is not None and self._running.pop(running.number, None) is not None:
            self._engine.cancel(running.number)

    def _fail_all(self, error: ServerError) -> None:
        failed = list(self._running.values())
        self._running.clear()
        for running in failed:
            assert running.number is not None
            self._engine.cancel(running.number)
        self._tell(lambda: _hand_over([(running, error) for running in failed], failed))

    def _drop_all(self) -> None:
        self._fail_all(Closing("the server is stopping"))


def _hand_over(told: Sequence[tuple[Running, Outcome]], ended: Sequence[Running]) -> None:
    for running, outcome in told:
        running.put(outcome)
    for running in ended:
        running.put(None)
        running.end()
