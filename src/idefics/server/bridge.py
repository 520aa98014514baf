"""Between asyncio and the engine: one thread owns the engine, and only it calls `add`, `step` and `cancel`.

Requests reach the thread through an inbox. What happens to them goes back to each one's queue in the event loop: all of a
step in one message, or, where nobody wants tokens one by one, all of an answer when it ends. The event loop never waits for
a step, so `/health` and `/metrics` answer whatever the engine does. Whatever ends the thread, nobody is left waiting for it:
each job that is not done is refused.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from idefics.engine.request import Ended, Event, StopCheck, Token
from idefics.engine.sampling import LogitFilter
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.processor.tokenizer import Tokenizer
from idefics.server.answers import AnswerText, Said
from idefics.server.errors import Closing, GenerationFailed, ServerError, TimedOut, as_server_error
from idefics.server.requests import Prepared
from idefics.server.running import Outcome, Running, hand_over

__all__ = ["Bridge", "EngineLike", "Running"]

Result = TypeVar("Result")

log = logging.getLogger(__name__)
GRACE = 2.0  # seconds that the thread gets to end the step it is in
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


@dataclass(eq=False)
class _Job:
    """What the engine's thread is asked for.

    Attributes:
        do: called in that thread.
        refuse: called in the event loop if the thread will not do it, or not finish it.
        context: of whoever asked, so that log lines bear the request's id.
    """

    do: Callable[[], None]
    refuse: Callable[[ServerError], None] = lambda _error: None
    context: Context = field(default_factory=copy_context)


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
        self._inbox: list[_Job] = []
        self._open: set[_Job] = set()  # in the event loop: those that somebody waits for
        self._running: dict[int, Running] = {}
        self._closing = False
        self._ended = False
        self._fault: str | None = None
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
        while self._open and not self._ended and time.monotonic() < until:
            await asyncio.sleep(0.02)
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._refuse_open()  # from here, not from the thread: it may be stuck
        until = time.monotonic() + GRACE
        while self._thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and gets on with its work."""
        return (
            self._thread.is_alive() and not self._ended and self._failures < FAILURES and self.step_seconds <= self._stuck_after
        )

    @property
    def step_seconds(self) -> float:
        """How long the step under way has taken; 0 between two of them."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def fault(self) -> str | None:
        """Why the engine was given up, if it was."""
        return self._fault

    @property
    def ended(self) -> bool:
        """Whether nothing is done any more; the thread may still be in its last step."""
        return self._ended

    @property
    def alive(self) -> bool:
        """Whether the thread has not left."""
        return self._thread.is_alive()

    @property
    def closing(self) -> bool:
        """Whether no more requests are taken."""
        return self._closing

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
            raise self._refusal()
        asked = prepared.asked
        # After a special token, such as that of an image, a text begins anew, and with it the tokenizer writes the space.
        inside = asked.appended and int(prepared.inputs.input_ids_BT[0, -1]) not in self._tokenizer.all_special_ids
        texts = [
            AnswerText(
                self._tokenizer, stop=prepared.stop, stop_ids=prepared.stop_ids, keep_stop=asked.keep_stop, inside=inside
            )
            for _ in range(prepared.params.candidates)
        ]

        def ended() -> None:
            self._open.discard(job)
            done()

        running = Running(texts, streams=streams, deadline=deadline, done=ended, cancelled=self._forget)
        job = _Job(lambda: self._add(running, prepared), refuse=lambda error: hand_over([(running, error)], [running]))
        self._open.add(job)
        self._post(job)
        try:
            await running.taken()
        except BaseException:
            running.cancel()
            raise
        return running

    async def run(self, work: Callable[[], Result]) -> Result:
        """Runs something with the model between two steps; while the server stops too, as a running request may need it.

        Raises:
            Closing: the engine is stuck or dead.
            GenerationFailed: it failed.
        """
        assert self._loop is not None, "not started"
        if not self.healthy:
            raise self._refusal()
        loop = self._loop
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: ServerError | None) -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)  # type: ignore[arg-type]

        def do() -> None:
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

        job = _Job(do, refuse=lambda error: settle(None, error))
        self._open.add(job)
        try:
            self._post(job)
            return await future
        finally:
            self._open.discard(job)

    def _forget(self, running: Running) -> None:
        self._post(_Job(lambda: self._cancel(running)))

    def _post(self, job: _Job) -> None:
        """Called in the event loop."""
        with self._wake:
            ended = self._ended
            if not ended:
                self._inbox.append(job)
                self._wake.notify()
        if ended:
            job.refuse(self._refusal())

    def _refuse_open(self) -> None:
        for job in list(self._open):
            job.refuse(self._refusal())

    def _refusal(self) -> Closing:
        return Closing("the server is stopping" if self._closing else "the engine does not answer; try again later")

    def _tell(self, message: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(message)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._closing = True

    def _work(self) -> None:
        try:
            while self._turn():
                pass
            for number in list(self._running):
                self._engine.cancel(number)
        except BaseException as error:
            self._fault = f"the engine's thread ended: {type(error).__name__}"
            log.critical(self._fault, exc_info=True)
        finally:
            self._busy_since = None
            with self._wake:
                self._ended = True
            self._tell(self._refuse_open)

    def _turn(self) -> bool:
        """Does what has come in, and a step; False once there is nothing more to do."""
        with self._wake:
            while not self._inbox and not self._engine.busy and not self._ended:
                if self._closing and not self._running:
                    return False
                self._wake.wait(timeout=0.5)
            if self._ended:
                return False
            jobs, self._inbox = self._inbox, []
        self._busy_since = time.monotonic()
        for job in jobs:
            job.context.run(job.do)
        if self._engine.busy:
            self._step()
        self._busy_since = None
        if self._failures >= FAILURES:
            self._fault = f"the engine failed {FAILURES} times in a row"
            log.critical(self._fault)
            return False
        return True

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
        ended = self._whole(known)
        told = [(running, outcome) for running, outcome in known if running.streams]
        for running, outcome in known:
            if not running.streams:
                running.kept.append(outcome)
        for running in ended:
            told += [(running, outcome) for outcome in running.kept]
        if told:
            self._tell(lambda: hand_over(told, ended))

    def _outcome(self, event: Event) -> tuple[Running | None, Outcome]:
        running = self._running.get(event.row)
        if running is None:
            return None, None
        if running.planned is None and isinstance(event, Token):
            running.planned = event.planned
        if isinstance(event, Ended):
            running.open.discard(event.candidate)
            if event.finish == "deadline":
                return running, TimedOut("the request's time is over")
            return running, as_server_error(event.error or GenerationFailed(f"the request was {event.finish}"))
        if event.finish is not None:
            running.open.discard(event.candidate)
        return running, running.texts[event.candidate].said(event)

    def _whole(self, known: Sequence[tuple[Running, Outcome]]) -> list[Running]:
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
            self._tell(lambda: hand_over([(running, failed)], [running]))
            return
        running.added = time.monotonic()
        self._running[running.number] = running
        self._tell(lambda: running.put(None))

    def _cancel(self, running: Running) -> None:
        if running.number is not None and self._running.pop(running.number, None) is not None:
            self._engine.cancel(running.number)

    def _fail_all(self, error: ServerError) -> None:
        failed = dict(self._running)
        self._running.clear()
        # Told before the engine is: one that fails may not even cancel.
        self._tell(lambda: hand_over([(running, error) for running in failed.values()], list(failed.values())))
        for number in failed:
            self._engine.cancel(number)
