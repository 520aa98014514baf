"""Between asyncio and the engine, which works in a process or a thread of its own.

Requests go there as commands, sent by a thread, as pixels take a while; what happens to them comes back in reports, read by
another. From there it goes to each request's queue in the event loop: all of a step in one message, or, where nobody wants
tokens one by one, all of an answer when it ends. The event loop never waits for a step, so `/health` and `/metrics` answer
whatever the engine does. Whatever ends the engine, nobody is left waiting for it: each request that is not done is refused.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import Protocol

from idefics.engine.request import Token
from idefics.engine.state import EngineState
from idefics.inputs import ModelInputs
from idefics.processor.tokenizer import Tokenizer
from idefics.server.deadlines import STEP_ENDS
from idefics.server.errors import Closing, ServerError, as_server_error
from idefics.server.link.answers import Sayer
from idefics.server.link.running import Message, Running, hand_over
from idefics.server.link.worker import BEAT_SECONDS, Add, Cancel, Command, Failed, Outcome, Report, Score, Scored, Stop
from idefics.server.logs import REQUEST_ID
from idefics.server.prepare.requests import Prepared

__all__ = ["Bridge", "EngineLink"]

log = logging.getLogger(__name__)
IDLE_SILENCE = 4 * BEAT_SECONDS  # after which an engine without work is not merely late to say that it is there


class EngineLink(Protocol):
    """Where the engine works: `EngineProcess` or `EngineThread`."""

    def start(self, heard: Callable[[Report], None], ended: Callable[[str], None]) -> None:
        """Begins to work.

        Args:
            heard: told every report, in a thread of the link's own.
            ended: told in the end, in that thread, what has ended.
        """
        ...

    def send(self, command: Command) -> None:
        """Passes a command on; may take a while, and is called in one thread.

        Raises:
            OSError: nobody is there any more.
            Exception: this command cannot be passed on, and nothing of it was.
        """
        ...

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        ...

    def kill(self) -> None:
        """Ends it in the middle of what it does, if it can be ended so."""
        ...


class Bridge:
    """The ways to the engine and back.

    Args:
        engine: used by the bridge alone.
        tokenizer: of the model.
        stuck_after: seconds of one step after which the engine counts as stuck.
        stepped: told the seconds and the number of tokens of each step, in the thread that reads reports.
    """

    def __init__(
        self,
        engine: EngineLink,
        tokenizer: Tokenizer,
        *,
        stuck_after: float,
        stepped: Callable[[float, int], None] = lambda _seconds, _tokens: None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stuck_after = stuck_after
        self._stepped = stepped
        self._numbers = count()
        self._outbox: SimpleQueue[Command] = SimpleQueue()
        self._waiting: dict[int, Callable[[ServerError], None]] = {}  # how to refuse those that somebody waits for
        self._running: dict[int, Running] = {}
        self._scores: dict[int, Callable[[Outcome], None]] = {}
        self._closing = False
        self._ended = False
        self._fault: str | None = None
        self._state = EngineState()
        self._lock = threading.Lock()
        self._sent = 0  # with the next three, under the lock
        self._done = 0
        self._computes = False
        self._busy_since: float | None = None
        self._heard_at = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sender = threading.Thread(target=self._send, name="commands", daemon=True)

    def start(self) -> None:
        """Begins to work; called in the event loop that requests come from."""
        self._loop = asyncio.get_running_loop()
        self._heard_at = time.monotonic()
        self._engine.start(self._heard, self._gone)
        self._sender.start()

    async def close(self, *, drain: float) -> None:
        """Takes no more requests, lets those that run end for so many seconds, and ends the engine."""
        until = time.monotonic() + drain
        self._closing = True
        while self._waiting and not self._ended and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._ended = True
        self._outbox.put(Stop())
        self._refuse_all()
        until = time.monotonic() + STEP_ENDS
        while self._engine.alive and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._engine.kill()

    @property
    def healthy(self) -> bool:
        """Whether the engine lives and gets on with its work."""
        return not self._ended and self._engine.alive and self.step_seconds <= self._stuck_after

    @property
    def step_seconds(self) -> float:
        """How long nothing has been heard of the engine though it has work, or should have said that it has none."""
        with self._lock:
            now, since, heard_at = time.monotonic(), self._busy_since, self._heard_at
        if since is not None:
            return now - since
        return now - heard_at if now - heard_at > IDLE_SILENCE else 0.0

    @property
    def state(self) -> EngineState:
        """What the engine held when it was last heard of."""
        return self._state

    @property
    def fault(self) -> str | None:
        """Why the engine was given up, if it was."""
        return self._fault

    @property
    def ended(self) -> bool:
        """Whether nothing is done any more; the engine may still be in its last step."""
        return self._ended

    @property
    def alive(self) -> bool:
        """Whether the engine has not left."""
        return self._engine.alive

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
            Sayer(self._tokenizer, stop=prepared.stop, stop_ids=prepared.stop_ids, keep_stop=asked.keep_stop, inside=inside)
            for _ in range(prepared.params.candidates)
        ]
        number = next(self._numbers)

        def ended() -> None:
            self._running.pop(number, None)
            self._waiting.pop(number, None)
            done()

        running = Running(texts, streams=streams, deadline=deadline, done=ended, cancelled=lambda: self._post(Cancel(number)))
        self._running[number] = running
        self._waiting[number] = lambda error: hand_over([(running, error)], [running])
        self._post(
            Add(
                number=number,
                request_id=REQUEST_ID.get(),
                inputs=prepared.inputs,
                params=prepared.params,
                stop=prepared.stop,
                inside=inside,
                grammar=asked.grammar,
                deadline=deadline,
            )
        )
        try:
            await running.taken()
        except BaseException:  # cancelled, too: the engine need not go on
            running.cancel()
            raise
        return running

    async def score(self, inputs: ModelInputs) -> list[float]:
        """Log-probability of each token of a prompt but the first; while the server stops too, as an answer may need it.

        Raises:
            Closing: the engine is stuck or dead.
            GenerationFailed: it failed.
        """
        if not self.healthy:
            raise self._refusal()
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)

        def settle(outcome: Outcome | ServerError) -> None:
            if future.done():
                return
            if isinstance(outcome, Scored):
                future.set_result(outcome.logprobs)
            elif isinstance(outcome, Failed):
                future.set_exception(outcome.error)
            elif isinstance(outcome, ServerError):
                future.set_exception(outcome)

        self._scores[number] = settle
        self._waiting[number] = settle
        try:
            self._post(Score(number=number, request_id=REQUEST_ID.get(), inputs=inputs))
            return await future
        finally:
            del self._scores[number], self._waiting[number]
            if future.cancelled():
                self._post(Cancel(number))

    def _post(self, command: Command) -> None:
        """Called in the event loop."""
        if self._ended:
            self._refuse_all()
            return
        with self._lock:
            self._sent += 1
            if self._busy_since is None:
                self._busy_since = time.monotonic()
        self._outbox.put(command)

    def _send(self) -> None:
        while True:
            command = self._outbox.get()
            try:
                self._engine.send(command)
            except OSError:  # nobody reads any more: whoever reads reports tells why
                return
            except Exception as error:  # of this command alone: others can still be sent
                log.exception("a command could not be sent")
                self._unsent(command, as_server_error(error))
            last = isinstance(command, Stop)
            del command  # with its pixels, while nothing comes
            if last:
                return

    def _unsent(self, command: Command, error: ServerError) -> None:
        with self._lock:
            self._sent -= 1
            if self._sent == self._done and not self._computes:
                self._busy_since = None
        if not isinstance(command, Stop):
            refuse = self._waiting.get(command.number)
            if refuse is not None:
                self._tell(lambda: refuse(error))

    def _refuse_all(self) -> None:
        for refuse in list(self._waiting.values()):
            refuse(self._refusal())

    def _refusal(self) -> Closing:
        return Closing("the server is stopping" if self._closing else "the engine does not answer; try again later")

    def _tell(self, message: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(message)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._closing = True

    def _gone(self, what: str) -> None:
        """Called in the thread that reads reports: there will be no more."""
        if not self._ended:
            self._fault = what
            log.critical(what)
        self._ended = True
        with self._lock:
            self._busy_since = None
        self._tell(self._refuse_all)

    def _heard(self, report: Report) -> None:
        """Called in the thread that reads reports."""
        self._state = report.state
        with self._lock:
            now = self._heard_at = time.monotonic()
            # One that only says that it is there has not come on with a command that is on its way to it.
            came_on = report.step_seconds is not None or report.commands > self._done
            self._done, self._computes = report.commands, report.busy
            if not (self._computes or self._done < self._sent):
                self._busy_since = None
            elif came_on or self._busy_since is None:
                self._busy_since = now
        if report.fault is not None:
            self._fault = self._fault or report.fault
            self._ended = True
        if report.step_seconds is not None:
            self._stepped(report.step_seconds, sum(isinstance(outcome, Token) for _, outcome in report.outcomes))
        told: list[tuple[Running, Message]] = []
        ended: list[Running] = []
        for number, outcome in report.outcomes:
            if (settle := self._scores.get(number)) is not None:
                self._tell(partial(settle, outcome))
            if (running := self._running.get(number)) is not None:
                told += running.heard(outcome, at=report.at)
                if running.whole:
                    ended.append(running)
        if told or ended:
            self._tell(lambda: hand_over(told, ended))
        if report.fault is not None:
            self._tell(self._refuse_all)
