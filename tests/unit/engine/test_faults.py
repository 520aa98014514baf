"""What goes wrong with one request: it alone is told, nothing of it stays, and the engine goes on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import gated
from asking import assert_nothing_held, drain, greedy, plain, prompt, said
from fakes import tiny_config, tiny_model
from idefics.engine import sampling
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.request import Ended, Event
from idefics.engine.runner import Runner
from idefics.engine.sampling import Sampler
from idefics.engine.sequences import Slice
from idefics.errors import OutOfMemory
from idefics.model.base import VisionLanguageModel

SMALL = Limits(rows=6, tokens=16, block=4)
FORBIDDEN = 66  # a token that no prompt and no answer holds


def models(family: str) -> VisionLanguageModel:
    return gated.tiny_model(seed=1) if family == "idefics" else tiny_model(tiny_config(), seed=1, std=0.3)


@pytest.fixture(scope="module", params=["idefics2", "idefics"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return models(request.param)


def full(*_: Any) -> Any:
    raise MemoryError


def error_of(events: Sequence[Event]) -> Exception | None:
    assert isinstance(events[-1], Ended)
    return events[-1].error


def test_a_pass_that_found_no_memory_keeps_none_while_it_is_tried_again(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, SMALL)
    run, encode = Runner.run, type(model).encode_images
    made: list[weakref.ref[torch.Tensor]] = []

    def short(things: Sequence[Any], *, most: int, then: Callable[[], Any]) -> Any:
        assert [kept() for kept in made if kept() is not None] == [], "activations of a failed try are alive"
        if len(things) <= most:
            return then()
        activations = torch.ones(1000)
        made.append(weakref.ref(activations))
        raise MemoryError

    monkeypatch.setattr(Runner, "run", lambda self, slices: short(slices, most=1, then=lambda: run(self, slices)))
    monkeypatch.setattr(
        type(model), "encode_images", lambda self, images: short(images, most=1, then=lambda: encode(self, images))
    )
    prompts = [prompt(model, seed, images=1) for seed in range(4)]
    numbers = [engine.add(inputs, greedy(3)) for inputs in prompts]
    found = drain(engine)
    assert made
    monkeypatch.undo()
    assert [said(found[number]) for number in numbers] == [plain(model, inputs, 3) for inputs in prompts]


def test_one_answer_that_finds_no_memory_keeps_none_while_others_are_computed(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, SMALL)
    run = Runner.run
    made: list[weakref.ref[torch.Tensor]] = []

    def short(self: Runner, slices: Sequence[Slice]) -> list[torch.Tensor]:
        assert [kept() for kept in made if kept() is not None] == []
        if any(piece.answer.row == 0 for piece in slices):
            activations = torch.ones(1000)
            made.append(weakref.ref(activations))
            raise MemoryError
        return run(self, slices)

    monkeypatch.setattr(Runner, "run", short)
    numbers = [engine.add(prompt(model, seed, images=0), greedy(3)) for seed in range(3)]
    found = drain(engine)
    assert [kept() for kept in made] == [None, None]
    assert isinstance(error_of(found[numbers[0]]), OutOfMemory)
    assert [len(said(found[number])) for number in numbers[1:]] == [3, 3]


def at_most(rows: int, work: Callable[..., Any]) -> Callable[..., Any]:
    return lambda logits_RV, *args: work(logits_RV, *args) if len(logits_RV) <= rows else full()


def test_memory_that_ends_while_tokens_are_chosen(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with random numbers: those of a choice that came to nothing are drawn again."""
    params = greedy(8, do_sample=True, temperature=3.0, seed=4, logprobs=2)
    prompts = [prompt(model, seed, images=0) for seed in range(3)]
    answers = []
    for most in (9, 1, 0):
        engine = Engine(model, SMALL)
        numbers = [engine.add(inputs, params) for inputs in prompts]
        for name in ("pick", "alternatives"):
            monkeypatch.setattr(sampling, name, at_most(most, getattr(sampling, name)))
        found = drain(engine)
        monkeypatch.undo()
        answers.append([said(found[number]) for number in numbers])
        assert_nothing_held(engine)
        if not most:
            assert all(isinstance(error_of(found[number]), OutOfMemory) for number in numbers)
    assert answers[0] == answers[1]
    assert [len(ids) for ids in answers[0]] == [8] * 3


def test_a_drawn_number_that_is_given_back_is_drawn_again() -> None:
    sampler, other = (Sampler(greedy(4, do_sample=True, seed=1), [1]) for _ in range(2))
    first = sampler.draw()
    sampler.give_back(first)
    assert [sampler.draw(), sampler.draw()] == [other.draw(), other.draw()]
