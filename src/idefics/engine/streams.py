"""Answers handed out as they come, to many threads over one engine: whoever waits for a token computes the next pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from idefics.engine.intake import unpadded
from idefics.engine.prefill import left_aligned
from idefics.engine.request import Completion, Ended, Event, StopCheck, Token
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import OptionError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from idefics.parallel.launch import agreed_seed

__all__ = ["Stepping", "Streams"]

STREAMS_OF_A_PROMPT = 1_000
"""Of random numbers, at least, before those of the next prompt of a call begin: more candidates than most ask for."""


class Stepping(Protocol):
    """What is asked of an engine, whose methods are told in `engine.py`.

    Attributes:
        model: that computes.
    """

    model: VisionLanguageModel

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held by whoever computes a pass; may be taken again by the same thread."""
        ...

    def add(
        self, inputs: ModelInputs, params: SamplingParams, *, stops: Sequence[StopCheck] | None = None, stream: int = 0
    ) -> int:
        """Takes in one prompt, and numbers it."""
        ...

    def unfinished(self, number: int) -> bool:
        """Whether any answer of a request has not ended."""
        ...

    def step(self) -> list[Event]:
        """Computes one pass, and tells what happened."""
        ...

    def collected(self) -> list[Event]:
        """What a step that failed had collected."""
        ...

    def keep(self, event: Event) -> None:
        """Leaves an event to whoever steps next."""
        ...

    def cancel(self, number: int) -> list[Event]:
        """Ends a request."""
        ...


class Streams:
    """Which requests are streamed, and what is to be handed out of each."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Event]] = {}

    def stream(
        self, engine: Stepping, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None
    ) -> Iterator[Token]:
        """As `Engine.stream`. What is drawn without a seed of its own is drawn from one that is agreed on at once."""
        if any(p.do_sample and p.seed is None for p in params):
            seed = agreed_seed(engine.model)  # processes that compute one model must draw the same tokens
            params = [replace(p, seed=seed) if p.seed is None else p for p in params]
        return self._streamed(engine, inputs, params, stops)

    def generate(
        self, engine: Stepping, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None
    ) -> list[list[Completion]]:
        """As `Engine.generate`, without beams."""
        tokens: list[list[list[Token]]] = [[[] for _ in range(p.candidates)] for p in params]
        for token in self.stream(engine, inputs, params, stops):
            tokens[token.row][token.candidate].append(token)
        completed = [[Completion.of(answer) for answer in row] for row in tokens]
        return [
            sorted(row, key=lambda c: -c.score)[: p.n] if p.best_of is not None else row
            for row, p in zip(completed, params, strict=True)
        ]

    def _streamed(
        self, engine: Stepping, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None
    ) -> Iterator[Token]:
        engine.model.check(inputs)
        inputs = left_aligned(inputs)
        remaining = list(stops or ())
        apart = max([STREAMS_OF_A_PROMPT, *(p.candidates for p in params)])
        rows: dict[int, int] = {}
        events: deque[Event] = deque()
        try:
            with engine.lock:
                for row, p in enumerate(params):
                    own, remaining = remaining[: p.candidates], remaining[p.candidates :]
                    number = engine.add(unpadded(inputs.row(row)), p, stops=own or None, stream=row * apart)
                    rows[number] = row
                    self._queues[number] = events
            while True:
                with engine.lock:  # computing and handing out are one, or another thread's pass could come between
                    if not events:
                        if not any(engine.unfinished(number) for number in rows):
                            return
                        self._step(engine)
                while events:
                    event = events.popleft()
                    if isinstance(event, Ended):
                        raise event.error or OptionError(f"the request was {event.finish}")
                    yield replace(event, row=rows[event.row])
        finally:
            with engine.lock:
                for number in rows:
                    engine.cancel(number)
                    self._queues.pop(number, None)

    def _step(self, engine: Stepping) -> None:
        """Steps, and hands events to whoever streams their requests; several may do so side by side, each stepping in turn.

        Those of requests that nobody streams are kept for the next `step` of whoever added them.
        """
        events: list[Event] | None = None
        try:
            events = engine.step()
        finally:  # what a step that fails had collected is others' as well, and they must not think that it was all
            for event in engine.collected() if events is None else events:
                queue = self._queues.get(event.row)
                if queue is None:
                    engine.keep(event)
                else:
                    queue.append(event)
