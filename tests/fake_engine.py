"""An engine without a model: it says what it was told to, at the pace it was told to, and does wrong on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from idefics.engine.history import LogitFilter
from idefics.engine.request import Ended, Event, FinishReason, StopCheck, Token
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.state import EngineState
from idefics.inputs import ModelInputs


@dataclass
class Answer:
    number: int
    candidate: int
    params: SamplingParams
    room: int
    stop: StopCheck | None
    deadline: float | None
    planned: float | None = None
    ids: list[int] = field(default_factory=list)


class FakeEngine:
    """Says `script` and the first end token, one token per answer and step.

    Args:
        script: ids of every answer.
        step_seconds: that a step takes.
        rows: answers that get a token in a step.
    """

    def __init__(self, script: Sequence[int], *, step_seconds: float = 0.0, rows: int = 64) -> None:
        self.script = list(script)
        self.step_seconds = step_seconds
        self.rows = rows
        self.refuse: Exception | None = None  # what `add` raises
        self.fail_request: Exception | None = None  # with what every request ends at the next step
        self.fail_step: Exception | None = None  # what `step` raises
        self.faults = 0  # as of the engine
        self.hold = threading.Event()  # steps wait until it is set
        self.hold.set()
        self.cancelled: list[int] = []
        self.seen: list[ModelInputs] = []
        self.params: list[SamplingParams] = []
        self.threads: set[str] = set()
        self._answers: list[Answer] = []

    @property
    def busy(self) -> bool:
        return bool(self._answers)

    def add(
        self,
        inputs: ModelInputs,
        params: SamplingParams,
        *,
        stops: Sequence[StopCheck] | None = None,
        guides: Sequence[LogitFilter] | None = None,
        deadline: float | None = None,
        number: int | None = None,
    ) -> int:
        del guides
        self.threads.add(threading.current_thread().name)
        if self.refuse is not None:
            raise self.refuse
        assert number is not None, "the server numbers its requests"
        assert number not in {answer.number for answer in self._answers}
        self.seen.append(inputs)
        self.params.append(params)
        room = params.new_tokens(inputs.input_ids_BT.shape[1], positions=512)
        for candidate in range(params.candidates):
            stop = None if stops is None else stops[candidate]
            self._answers.append(Answer(number, candidate, params, room, stop, deadline))
        return number

    def cancel(self, number: int) -> list[Event]:
        self.threads.add(threading.current_thread().name)
        ended = [a for a in self._answers if a.number == number]
        self._answers = [a for a in self._answers if a.number != number]
        if ended:
            self.cancelled.append(number)
        return [Ended(row=number, candidate=a.candidate, finish="cancelled") for a in ended]

    def step(self) -> list[Event]:
        self.threads.add(threading.current_thread().name)
        self.hold.wait()
        time.sleep(self.step_seconds)
        if self.fail_step is not None:
            self.faults += 1
            raise self.fail_step
        if self._answers:
            self.faults = self.faults + 1 if self.fail_request is not None else 0
        events: list[Event] = []
        for answer in self._answers[: self.rows]:
            answer.planned = answer.planned or time.monotonic()
            events.append(self._next(answer))
        return events

    def state(self) -> EngineState:
        return EngineState(running=len(self._answers), blocks=64, blocks_held=len(self._answers), block_tokens=16)

    def score_prompt(self, inputs: ModelInputs) -> list[float]:
        return [-1.0] * (inputs.input_ids_BT.shape[1] - 1)

    def _next(self, answer: Answer) -> Event:
        where = {"row": answer.number, "candidate": answer.candidate}
        if answer.deadline is not None and answer.deadline <= time.monotonic():
            self._answers.remove(answer)
            return Ended(finish="deadline", **where)
        if self.fail_request is not None:
            self._answers.remove(answer)
            return Ended(finish="error", error=self.fail_request, **where)
        end = answer.params.eos_token_id[0]
        token = self.script[len(answer.ids)] if len(answer.ids) < len(self.script) else end
        answer.ids.append(token)
        finish: FinishReason | None = None
        if token == end:
            finish = "eos"
        elif answer.stop is not None and answer.stop(answer.ids):
            finish = "stop"
        elif len(answer.ids) >= answer.room:
            finish = "length"
        if finish is not None:
            self._answers.remove(answer)
        top = tuple((token + i, -0.5 - i) for i in range(answer.params.logprobs or 0))
        return Token(id=token, logprob=-0.5, top=top, finish=finish, planned=answer.planned, **where)
