"""The engine's loop: commands come in, reports go out, and nothing else touches the engine.

It runs in a process of its own (`engine_process.py`), so that whatever the server does with HTTP, images and text leaves the
engine's interpreter alone, or in a thread (`engine_thread.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from idefics.asking.text import StopWatch
from idefics.engine.history import LogitFilter
from idefics.engine.request import Ended, Event, Token
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.state import EngineState
from idefics.inputs import ModelInputs
from idefics.processor.tokenizer import Tokenizer
from idefics.server.errors import GenerationFailed, ServerError, TimedOut, as_server_error
from idefics.server.logs import REQUEST_ID
from idefics.server.model import EngineLike
from idefics.server.prepare.grammars import Grammar
from idefics.server.prepare.guides import Guides

__all__ = [
    "BEAT_SECONDS", "Add", "Cancel", "Command", "Failed", "Outcome", "Report", "Score", "Scored", "Stop", "Taken", "Worker",
]  # fmt: skip

log = logging.getLogger(__name__)
BEAT_SECONDS = 0.5  # between two reports of a worker that has nothing to do, which say that it is there
FAILURES = 3  # steps in a row that fail for no request's fault, or of which nothing came; then the engine is given up


@dataclass(frozen=True, kw_only=True, eq=False)
class Add:
    """A prompt to continue.

    Attributes:
        number: of the request; reports bear it.
        request_id: as log lines have it.
        inputs: one row.
        params: how.
        stop: strings that end an answer.
        inside: see `TextStream`.
        grammar: what answers must look like.
        deadline: in seconds of `time.monotonic`, which all processes of a machine share.
    """

    number: int
    request_id: str | None
    inputs: ModelInputs
    params: SamplingParams
    stop: tuple[str, ...]
    inside: bool
    grammar: Grammar | None
    deadline: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """A prompt whose tokens' log-probabilities are wanted; attributes as of `Add`."""

    number: int
    request_id: str | None
    inputs: ModelInputs


@dataclass(frozen=True)
class Cancel:
    """The end of the request of that number, whatever it is doing."""

    number: int


@dataclass(frozen=True)
class Stop:
    """The end of all requests and of the worker, once the step under way is over."""


Command = Add | Score | Cancel | Stop


@dataclass(frozen=True)
class Taken:
    """The engine took the request in."""


@dataclass(frozen=True)
class Failed:
    """No more will come of one of a request's answers, or, for None, of all."""

    candidate: int | None
    error: ServerError


@dataclass(frozen=True)
class Scored:
    """Log-probability of each token of a prompt but the first."""

    logprobs: list[float]


Outcome = Taken | Token | Failed | Scored


@dataclass(frozen=True, kw_only=True)
class Report:
    """What has happened since the last one.

    Attributes:
        at: `time.monotonic` of now.
        commands: that have been carried out, in all so far.
        busy: whether a step follows whatever comes in.
        outcomes: in order, with their requests' numbers.
        step_seconds: that a step took; None without one.
        state: of the engine.
        fault: why this is the last report, if the engine was given up.
    """

    at: float
    commands: int
    busy: bool
    outcomes: list[tuple[int, Outcome]]
    step_seconds: float | None
    state: EngineState
    fault: str | None = None


@dataclass(eq=False)
class _Asked:
    """A request in the engine, and its answers that have not ended."""

    request_id: str | None
    open: set[int]


@dataclass(eq=False)
class _Job:
    """A command with what could be made for it outside of the engine's thread."""

    command: Add | Score | Cancel
    guides: Sequence[LogitFilter] | None = None
    refused: ServerError | None = None
    unwanted: bool = False


@dataclass
class _Inbox:
    """Jobs that wait for the engine's thread."""

    jobs: list[_Job] = field(default_factory=list)
    stopped: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)


class Worker:
    """Carries out commands with an engine.

    Args:
        engine: used in `run` alone.
        tokenizer: of the model.
        tell: told each report, in the thread of `run`.
    """

    def __init__(self, engine: EngineLike, tokenizer: Tokenizer, tell: Callable[[Report], None]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._tell = tell
        self._guides = Guides(tokenizer)
        self._inbox = _Inbox()
        self._compiling: deque[_Job] = deque()  # under the inbox's lock
        self._asked: dict[int, _Asked] = {}  # by their numbers, which the engine has from us
        self._commands = 0
        self._state = EngineState()
        self._busy = False

    def post(self, command: Command) -> None:
        """Leaves a command; from one other thread. A grammar is compiled apart: neither steps nor commands wait for it."""
        if isinstance(command, Stop):
            with self._inbox.changed:
                self._inbox.stopped = True
                self._inbox.changed.notify()
            return
        job, grammar = _Job(command), command.grammar if isinstance(command, Add) else None
        if isinstance(command, Add) and grammar is not None:
            job.guides = self._guides.known(grammar, answers=command.params.candidates, ends=command.params.eos_token_id)
        with self._inbox.changed:
            if isinstance(command, Cancel):
                for waiting in (*self._inbox.jobs, *self._compiling):
                    waiting.unwanted |= waiting.command.number == command.number
            if grammar is not None and job.guides is None:
                self._compiling.append(job)
                if len(self._compiling) == 1:
                    threading.Thread(target=self._compile, name="grammars", daemon=True).start()
                return
            self._inbox.jobs.append(job)
            self._inbox.changed.notify()

    def _compile(self) -> None:
        """Compiles the grammars that wait for it, in a thread of its own, and leaves their commands."""
        job = self._compiling[0]
        while True:
            command = job.command
            if isinstance(command, Add) and command.grammar is not None and not job.unwanted:
                params = command.params
                try:
                    job.guides = self._guides.of(command.grammar, answers=params.candidates, ends=params.eos_token_id)
                except BaseException as error:  # a library's panic, too: others wait behind it
                    job.refused = _logged(error, command.request_id)
            with self._inbox.changed:
                self._compiling.popleft()
                self._inbox.jobs.append(job)
                self._inbox.changed.notify()
                if not self._compiling:
                    return
                job = self._compiling[0]

    def run(self) -> None:
        """Works until it is told to stop, or the engine must be given up, which the last report then says."""
        try:
            while self._turn():
                pass
            for number in list(self._asked):
                self._engine.cancel(number)
        except BaseException as error:  # whatever ends the loop: its last report must say so, or all would wait
            log.critical("the engine's loop ended", exc_info=True)
            self._report([], fault=f"the engine's loop ended: {type(error).__name__}")

    def _next(self) -> list[_Job] | None:
        """What has come in, waited for a while if there is nothing else to do; None to stop."""
        inbox, busy = self._inbox, self._engine.busy
        with inbox.changed:
            if not (inbox.jobs or busy or inbox.stopped):
                inbox.changed.wait(BEAT_SECONDS)
            if inbox.stopped:
                return None
            jobs, inbox.jobs = inbox.jobs, []
        return jobs

    def _turn(self) -> bool:
        """Does what has come in, and a step; False once there is nothing more to do or the engine must be given up."""
        jobs = self._next()
        if jobs is None:
            return False
        if jobs:
            outcomes = [outcome for job in jobs for outcome in self._done(job)]
            self._commands += len(jobs)
            self._report(outcomes)
        had_none = not jobs
        del jobs  # with their pixels
        if not self._engine.busy:
            if had_none:
                self._report([])
            return True
        began = time.monotonic()
        try:
            events = self._engine.step()
        except Exception as error:  # no request's own fault: the engine tells those in their events
            return self._step_failed(error)
        outcomes = [outcome for event in events for outcome in self._outcome(event)]
        self._report(outcomes, step_seconds=time.monotonic() - began)
        lost = self._engine.faults >= FAILURES
        return not lost or self._fail_all(GenerationFailed("the engine failed; the server's log tells more"))

    def _report(
        self, outcomes: list[tuple[int, Outcome]], *, step_seconds: float | None = None, fault: str | None = None
    ) -> None:
        if fault is None:  # of an engine that is given up nothing more is asked
            self._state, self._busy = self._engine.state(), self._engine.busy
        self._tell(
            Report(
                at=time.monotonic(),
                commands=self._commands,
                busy=self._busy and fault is None,
                outcomes=outcomes,
                step_seconds=step_seconds,
                state=self._state,
                fault=fault,
            )
        )

    def _done(self, job: _Job) -> list[tuple[int, Outcome]]:
        command = job.command
        if job.unwanted:
            return []
        if isinstance(command, Cancel):
            if self._asked.pop(command.number, None) is not None:
                self._engine.cancel(command.number)
            return []
        try:
            if job.refused is not None:
                raise job.refused
            if isinstance(command, Score):
                return [(command.number, Scored(self._engine.score_prompt(command.inputs)))]
            self._add(command, job.guides)
        except Exception as error:  # whatever it is, it ends this request, and the loop goes on
            return [(command.number, Failed(None, _logged(error, command.request_id)))]
        return [(command.number, Taken())]

    def _add(self, command: Add, guides: Sequence[LogitFilter] | None) -> None:
        answers = range(command.params.candidates)
        watches = [StopWatch(self._tokenizer, command.stop, inside=command.inside) for _ in answers] if command.stop else None
        self._engine.add(
            command.inputs, command.params, stops=watches, guides=guides, deadline=command.deadline, number=command.number
        )
        self._asked[command.number] = _Asked(command.request_id, set(answers))

    def _outcome(self, event: Event) -> list[tuple[int, Outcome]]:
        asked = self._asked.get(event.row)
        if asked is None:
            return []
        outcome: Outcome
        if isinstance(event, Token):
            outcome = event
        elif event.finish == "deadline":
            outcome = Failed(event.candidate, TimedOut("the request's time is over"))
        else:
            error = event.error or GenerationFailed(f"the request was {event.finish}")
            outcome = Failed(event.candidate, _logged(error, asked.request_id))
        if isinstance(event, Ended) or event.finish is not None:
            asked.open.discard(event.candidate)
            if not asked.open:
                del self._asked[event.row]
        return [(event.row, outcome)]

    def _step_failed(self, error: Exception) -> bool:
        """Fails all requests; False if the engine must be given up, too."""
        log.error("a step failed", exc_info=error)
        return self._fail_all(GenerationFailed(f"the engine failed: {type(error).__name__}; the server's log tells more"))

    def _fail_all(self, told: ServerError) -> bool:
        asked, self._asked = self._asked, {}
        fault = f"the engine failed {FAILURES} times in a row" if self._engine.faults >= FAILURES else None
        if fault is not None:
            log.critical(fault)
        # Told before the engine is: one that fails may not even cancel.
        self._report([(number, Failed(None, told)) for number in asked], fault=fault)
        for number in asked:
            self._engine.cancel(number)
        if fault is None:
            self._report([])  # that nothing is left to do
        return fault is None


def _logged(error: BaseException, request_id: str | None) -> ServerError:
    """An error as clients are told; what went wrong inside is logged."""
    told = as_server_error(error)
    if told is not error and isinstance(told, GenerationFailed):
        before = REQUEST_ID.set(request_id)
        log.error("a request failed in the engine", exc_info=error)
        REQUEST_ID.reset(before)
    return told
