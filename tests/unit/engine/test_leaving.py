"""Requests that are cancelled, or whose time is over, in whatever state they are: they are told once, others say what they
would have said, and nothing is held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asking import assert_nothing_held, drain, greedy, plain, prompt, said
from idefics.engine import engine as engine_module
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.request import Ended, Event, Token
from idefics.engine.sequences import AnswerInMaking
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

SMALL = Limits(rows=6, tokens=16, block=4)
DEADLINE = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@dataclass
class Scene:
    """A request that stays and one that leaves."""

    model: VisionLanguageModel
    limits: Limits = SMALL
    staying: int = -1
    leaving: int = -1
    found: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.engine = Engine(self.model, self.limits)

    def stay(self, tokens: int = 12) -> None:
        self.staying = self.engine.add(prompt(self.model, 1, images=1), greedy(tokens))

    def leave(self, inputs: ModelInputs, tokens: int = 12, **options: Any) -> None:
        self.leaving = self.engine.add(inputs, greedy(tokens, **options), deadline=DEADLINE)

    @property
    def answers(self) -> list[AnswerInMaking]:
        """Of the request that leaves."""
        return self.engine._answers.get(self.leaving, [])

    def until(self, reached: Callable[[], object]) -> Scene:
        while not reached():
            assert self.engine.busy, "the state was never reached"
            for event in self.engine.step():
                self.found[event.row].append(event)
        return self


def long_text(length: int = 40) -> ModelInputs:
    ids_1T = torch.tensor([[1, *(10 + i % 50 for i in range(length))]])
    return ModelInputs(input_ids_BT=ids_1T, attention_mask_BT=torch.ones_like(ids_1T), images_per_row=(0,))


def waiting(model: VisionLanguageModel) -> Scene:
    scene = Scene(model, replace(SMALL, rows=1))
    scene.stay()
    scene.leave(prompt(model, 2, images=1))
    return scene.until(lambda: scene.engine.scheduler.running and scene.answers[0] in scene.engine.scheduler.waiting)


def reading(model: VisionLanguageModel) -> Scene:
    scene = Scene(model)
    scene.stay()
    scene.leave(long_text())
    return scene.until(lambda: 0 < scene.answers[0].computed < scene.answers[0].prompt)


def interrupted(model: VisionLanguageModel) -> Scene:
    scene = Scene(model, replace(SMALL, cache_bytes=64 * token_bytes(model)[torch.device("cpu")]))
    scene.stay(tokens=30)
    scene.leave(long_text(24), tokens=20)
    return scene.until(
        lambda: scene.answers[0] in scene.engine.scheduler.waiting and len(scene.answers[0].ids) > scene.answers[0].prompt
    )


def speculating(model: VisionLanguageModel) -> Scene:
    scene = Scene(model)
    scene.stay()
    scene.leave(long_text(60), tokens=40, prompt_lookup_num_tokens=3)
    return scene.until(lambda: scene.answers and scene.answers[0].drafts)


def several(model: VisionLanguageModel) -> Scene:
    scene = Scene(model)
    scene.stay()
    scene.leave(prompt(model, 2, images=1), do_sample=True, temperature=3.0, seed=1, n=3)
    return scene.until(lambda: all(answer.decoding for answer in scene.answers))


def several_that_wait_for_the_first(model: VisionLanguageModel) -> Scene:
    scene = Scene(model)
    scene.stay()
    scene.leave(long_text(), do_sample=True, temperature=3.0, seed=1, n=3)
    return scene.until(lambda: scene.answers[0].computed and all(answer.waits for answer in scene.answers[1:]))


def several_of_which_one_was_interrupted(model: VisionLanguageModel) -> Scene:
    scene = Scene(model, replace(SMALL, cache_bytes=64 * token_bytes(model)[torch.device("cpu")]))
    scene.stay(tokens=20)
    scene.leave(long_text(16), tokens=30, do_sample=True, temperature=3.0, seed=1, n=3)
    return scene.until(
        lambda: (
            any(a in scene.engine.scheduler.waiting and len(a.ids) > a.prompt for a in scene.answers)
            and any(a in scene.engine.scheduler.running for a in scene.answers)
        )
    )


STATES = [
    waiting,
    reading,
    interrupted,
    speculating,
    several,
    several_that_wait_for_the_first,
    several_of_which_one_was_interrupted,
]


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
@pytest.mark.parametrize("state", STATES)
def test_leaving(model: VisionLanguageModel, clock: SimpleNamespace, state: Callable[..., Scene], how: str) -> None:
    scene = state(model)
    engine, number, left = scene.engine, scene.leaving, [a for a in scene.answers if not a.done]
    before = list(scene.found[number])
    if how == "cancelled":
        told = engine.cancel(number)
    else:
        clock.now = DEADLINE
        step = engine.step()
        told = [event for event in step if event.row == number]
        scene.found[scene.staying] += [event for event in step if event.row == scene.staying]
    assert told == [Ended(row=number, candidate=answer.candidate, finish=how) for answer in left]  # type: ignore[arg-type]
    assert engine.cancel(number) == []
    drain(engine, found=scene.found)
    assert scene.found[number] == before, "told again"
    stayed = scene.found[scene.staying]
    assert said(stayed) == plain(model, prompt(model, 1, images=1), len(said(stayed)))
    assert isinstance(stayed[-1], Token)
    assert stayed[-1].finish == "length"
    assert_nothing_held(engine)
    assert engine.runner._stacked is None, "the last images stay with an engine that rests"


def test_whoever_is_in_time_is_not_ended(model: VisionLanguageModel, clock: SimpleNamespace) -> None:
    engine = Engine(model, SMALL)
    clock.now = DEADLINE - 1e-6
    inputs = prompt(model, 1, images=1)
    number = engine.add(inputs, greedy(5), deadline=DEADLINE)
    assert said(drain(engine)[number]) == plain(model, inputs, 5)
