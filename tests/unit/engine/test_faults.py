"""What goes wrong with one request: it alone is told, nothing of it stays, and the engine goes on."""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from asking import assert_nothing_held, drain, greedy, model_of, plain, prompt, said
from idefics.engine import sampling
from idefics.engine.attempt import attempt
from idefics.engine.engine import Engine
from idefics.engine.intake import State
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.request import Ended, Event
from idefics.engine.runner import Runner
from idefics.engine.sampling import Sampler
from idefics.engine.sequences import Slice
from idefics.errors import InputError, NumericsError, OutOfMemory
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

SMALL = Limits(rows=6, tokens=16, block=4)
FORBIDDEN = 66  # a token that no prompt and no answer holds


@pytest.fixture(scope="module", params=["idefics2", "idefics"])
def overflowing(request: pytest.FixtureRequest) -> VisionLanguageModel:
    """A model that makes of one token what is no number, as 16 bits do of numbers that are too large."""
    made = model_of(request.param)
    with torch.no_grad():
        made.text_model.embed_tokens.weight[FORBIDDEN] = float("inf")
    return made


def small_cache(model: VisionLanguageModel, tokens: int) -> Limits:
    return replace(SMALL, cache_bytes=tokens * token_bytes(model)[torch.device("cpu")])


def texts(*ids: int) -> ModelInputs:
    ids_1T = torch.tensor([[1, *ids]])
    return ModelInputs(input_ids_BT=ids_1T, attention_mask_BT=torch.ones_like(ids_1T), images_per_row=(0,))


def spoiled(inputs: ModelInputs) -> ModelInputs:
    return replace(inputs, images_CHW=tuple(image * float("nan") for image in inputs.images_CHW))


def assert_others_are_right(engine: Engine, model: VisionLanguageModel) -> None:
    for seed in range(6):
        inputs = prompt(model, 30 + seed, images=0)
        number = engine.add(inputs, greedy(9))
        assert said(drain(engine)[number]) == plain(model, inputs, 9)
    assert_nothing_held(engine)


def broken(*_: Any, **__: Any) -> Any:
    raise IndexError("a mistake of ours")


def full(*_: Any) -> Any:
    raise MemoryError


def error_of(events: Sequence[Event]) -> Exception | None:
    assert isinstance(events[-1], Ended)
    return events[-1].error


def test_images_that_encode_to_no_numbers_are_refused_before_anything_is_written(model: VisionLanguageModel) -> None:
    engine = Engine(model, replace(SMALL, tokens=200))
    bad, good = spoiled(prompt(model, 2, images=3)), prompt(model, 3, images=2)
    numbers = [engine.add(inputs, greedy(5)) for inputs in (bad, good)]
    found = drain(engine)
    assert isinstance(error_of(found[numbers[0]]), NumericsError)
    assert "image" in str(error_of(found[numbers[0]]))
    assert said(found[numbers[1]]) == plain(model, good, 5)
    assert len(engine.runner.eyes.images._images) == 2, "what is no number is kept"
    assert not any(buffer.isnan().any() for buffer in (*engine.runner.cache.keys, *engine.runner.cache.values))
    assert_nothing_held(engine)


def cancelled(engine: Engine, number: int) -> None:
    (ended,) = engine.cancel(number)
    assert ended.finish == "cancelled"


def expired(engine: Engine, number: int) -> None:
    (answer,) = engine._answers[number]
    answer.state = replace(answer.state, deadline=0.0)
    assert Ended(row=number, candidate=0, finish="deadline") in engine.step()


def interrupted(engine: Engine, number: int) -> None:
    (answer,) = engine._answers[number]
    engine.scheduler._interrupt(answer)
    engine.cancel(number)


@pytest.mark.parametrize("end", [cancelled, expired, interrupted])
def test_what_is_no_number_leaves_with_a_prompt_that_was_not_read_to_its_end(
    overflowing: VisionLanguageModel, end: Callable[[Engine, int], None]
) -> None:
    engine = Engine(overflowing, small_cache(overflowing, 80))
    number = engine.add(texts(FORBIDDEN, *range(10, 45)), greedy(5))
    engine.step()
    assert any(buffer.isnan().any() for buffer in engine.runner.cache.values), "nothing to be afraid of"
    end(engine, number)
    assert_others_are_right(engine, overflowing)


def test_what_is_no_number_and_was_shared_leaves_with_the_last_who_held_it(overflowing: VisionLanguageModel) -> None:
    engine = Engine(overflowing, small_cache(overflowing, 120))
    beginning = (FORBIDDEN, *range(10, 33))
    first = engine.add(texts(*beginning, *range(10, 20)), greedy(5))
    engine.step()
    second = engine.add(texts(*beginning, *range(30, 60)), greedy(5))
    found = defaultdict(list)
    while first not in found:
        for event in engine.step():
            found[event.row].append(event)
    assert engine.scheduler.found > 0, "nothing was shared"
    assert isinstance(error_of(found[first]), NumericsError)
    engine.cancel(second)
    assert_others_are_right(engine, overflowing)


def test_wrong_guesses_that_are_no_numbers_stay_nobodys(
    overflowing: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(overflowing, small_cache(overflowing, 80))
    monkeypatch.setattr(State, "guesses", lambda _, answer: [FORBIDDEN] * (3 if answer.decoding else 0))
    number = engine.add(texts(5, 6), greedy(3, prompt_lookup_num_tokens=4))
    engine.step()
    engine.step()
    assert any(buffer.isnan().any() for buffer in engine.runner.cache.values)
    monkeypatch.undo()
    engine.cancel(number)
    assert_others_are_right(engine, overflowing)


def test_prompts_that_are_read_in_pieces_are_wiped_only_if_they_are_given_up(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, small_cache(model, 80))
    wiped: list[int] = []
    monkeypatch.setattr(Runner, "wipe", lambda _, blocks: wiped.extend(blocks))
    for seed in range(6):
        engine.add(texts(*(10 + (seed * i) % 40 for i in range(40))), greedy(5))
        drain(engine)
    assert wiped == []
    number = engine.add(texts(*range(20, 60)), greedy(5))
    engine.step()
    engine.cancel(number)
    engine.add(texts(*(60 - i % 50 for i in range(74))), greedy(5))  # needs the whole cache
    drain(engine)
    assert len(wiped) == 4


@pytest.mark.parametrize("shape", [(30, 30), (1, 3, 30, 30), (4, 30, 30), (30,)], ids=str)
def test_images_of_other_shapes_are_refused_where_requests_are_taken_in(
    model: VisionLanguageModel, shape: tuple[int, ...]
) -> None:
    engine = Engine(model, SMALL)
    with pytest.raises(InputError, match=r"image 1 has the shape .* \(3, height, width\)"):
        engine.add(replace(prompt(model, 1, images=1), images_CHW=(torch.zeros(shape),)), greedy(3))
    assert not engine.busy


def test_a_fault_in_the_tower_ends_the_requests_it_concerns(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, replace(SMALL, tokens=200))
    encode = type(model).encode_images
    bad, good = prompt(model, 2, images=1), prompt(model, 3, images=2)
    shape = bad.images_CHW[0].flatten()[0]

    def failing(self: VisionLanguageModel, images: Sequence[torch.Tensor]) -> torch.Tensor:
        return broken() if any(image.flatten()[0] == shape for image in images) else encode(self, images)

    monkeypatch.setattr(type(model), "encode_images", failing)
    numbers = [engine.add(inputs, greedy(5)) for inputs in (bad, good)]
    found = drain(engine)
    assert isinstance(error_of(found[numbers[0]]), IndexError)
    monkeypatch.undo()
    assert said(found[numbers[1]]) == plain(model, good, 5)
    assert_nothing_held(engine)


def test_passes_of_which_nothing_could_be_computed_are_counted(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, SMALL)
    for error in (broken, broken, full, broken):
        monkeypatch.setattr(Runner, "run", error)
        for seed in range(2):
            engine.add(prompt(model, seed), greedy(2))
        drain(engine)
        if error is full:
            assert engine.faults == 0, "a machine that is too small works"
    assert engine.faults > 0
    monkeypatch.undo()
    engine.add(prompt(model, 1), greedy(2))
    drain(engine)
    assert engine.faults == 0


def test_a_tower_that_fails_every_image_is_counted_unless_something_else_is_computed(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, replace(SMALL, tokens=200))
    monkeypatch.setattr(type(model), "encode_images", broken)
    for number in range(1, 4):
        engine.add(prompt(model, number, images=1), greedy(2))
        drain(engine)
        assert engine.faults == number
    engine.add(prompt(model, 5, images=1), greedy(2))
    engine.add(prompt(model, 6, images=0), greedy(2))
    drain(engine)
    assert engine.faults == 0


def test_steps_that_raise_are_counted_whatever_they_had_done_before(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(engine.scheduler, "advance", broken)
        for number in range(1, 4):
            late = engine.add(prompt(model, 7), greedy(3), deadline=time.monotonic() - 1)
            lost = engine.add(prompt(model, number), greedy(3))
            with pytest.raises(IndexError):
                engine.step()
            assert engine.faults == number, "the pass was computed, and yet nothing came of it"
            engine.cancel(lost)
            assert late in [event.row for event in engine.step()], "and a step that only tells what is over changes nothing"
            assert engine.faults == number
    engine.add(prompt(model, 1), greedy(3))
    drain(engine)
    assert engine.faults == 0


@pytest.mark.parametrize("culprit", range(3))
def test_a_fault_in_a_pass_ends_the_request_it_comes_from(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, culprit: int
) -> None:
    engine = Engine(model, SMALL)
    prompts = [prompt(model, seed) for seed in range(3)]
    numbers = [engine.add(inputs, greedy(6)) for inputs in prompts]
    run = Runner.run

    def failing(self: Runner, slices: Sequence[Slice]) -> list[torch.Tensor]:
        return broken() if any(piece.answer.request == numbers[culprit] for piece in slices) else run(self, slices)

    monkeypatch.setattr(Runner, "run", failing)
    found = drain(engine)
    for number, inputs in zip(numbers, prompts, strict=True):
        if number == numbers[culprit]:
            error = error_of(found[number])
            assert isinstance(error, IndexError)
            assert error.__traceback__ is not None, "nobody could tell where"
        else:
            assert said(found[number]) == plain(model, inputs, 6)
    assert_nothing_held(engine)


def test_what_ends_the_program_or_the_device_is_no_requests_fault(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, SMALL)
    inputs = prompt(model, 1)
    number = engine.add(inputs, greedy(6))
    for error in (KeyboardInterrupt(), torch.AcceleratorError("CUDA error: device-side assert triggered")):

        def raising(*_: Any, raised: BaseException = error) -> Any:
            raise raised

        monkeypatch.setattr(Runner, "run", raising)
        with pytest.raises(type(error)):
            engine.step()
        monkeypatch.undo()
    assert said(drain(engine)[number]) == plain(model, inputs, 6)


def fail_once(engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Makes the scheduler's method of that name raise after so many calls."""
    method, calls = getattr(engine.scheduler, name), count()
    failing = lambda *args, **options: broken() if next(calls) == after else method(*args, **options)  # noqa: E731
    monkeypatch.setattr(engine.scheduler, name, failing)


@pytest.mark.parametrize(("where", "after"), [("plan", 0), ("advance", 1)])
def test_what_has_happened_is_told_after_a_step_that_fails(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, where: str, after: int
) -> None:
    engine = Engine(model, SMALL)
    texts_of = [prompt(model, seed, images=0) for seed in range(3)]
    late = engine.add(texts_of[0], greedy(6), deadline=0.0)
    others = [engine.add(inputs, greedy(1)) for inputs in texts_of[1:]]
    fail_once(engine, where, monkeypatch, after=after)
    with pytest.raises(IndexError):
        engine.step()
    monkeypatch.undo()
    assert engine.busy
    for number in others:
        engine.cancel(number)
    found = drain(engine)
    assert found[late] == [Ended(row=late, candidate=0, finish="deadline")]
    assert said(found[others[0]]) == plain(model, texts_of[1], 1)[:after]
    assert_nothing_held(engine)


def test_a_stream_that_a_step_fails_leaves_no_events(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, SMALL)
    fail_once(engine, "advance", monkeypatch, after=1)
    unfinished = engine.stream(texts(5, 6), [greedy(4, do_sample=True, n=2)])
    next(unfinished)
    with pytest.raises(IndexError):
        list(unfinished)
    assert not engine.busy
    assert_nothing_held(engine)


def test_a_stream_beside_one_whose_step_fails_is_not_cut_short(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two threads: the one that is waiting goes on as soon as the other's step has raised."""
    engine = Engine(model, SMALL)
    inputs = prompt(model, 1, images=0)
    told: list[int] = []
    first, second = (engine.stream(inputs, [greedy(3)]) for _ in range(2))
    told.append(next(first).id)
    next(second)
    advance = engine.scheduler.advance
    waiting = threading.Thread(target=lambda: told.extend(token.id for token in first))

    def failing(piece: Slice, **options: int) -> None:
        if piece.answer.request == 1:
            waiting.start()
            broken()
        advance(piece, **options)

    monkeypatch.setattr(engine.scheduler, "advance", failing)
    monkeypatch.setattr(engine, "lock", Slow(engine.lock))
    with pytest.raises(IndexError):
        next(second)
    waiting.join()
    assert told == plain(model, inputs, 3)
    assert not engine.busy
    assert_nothing_held(engine)


class Slow:
    """A lock after whose release others have their turn."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        time.sleep(0.05)


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
        if any(piece.answer.request == 0 for piece in slices):
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


def test_what_fails_alone_is_told_and_the_rest_is_done() -> None:
    tried: list[list[int]] = []

    def work(things: Sequence[int]) -> list[int]:
        tried.append(list(things))
        return broken() if 3 in things else [2 * thing for thing in things]

    found = attempt(work, range(6))
    assert [found[i] for i in (0, 1, 2, 4, 5)] == [0, 2, 4, 8, 10]
    assert isinstance(found[3], IndexError)
    assert tried == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [3, 4, 5], [3], [4, 5]]
    assert attempt(work, []) == []


def test_pixels_go_as_soon_as_they_are_encoded_and_are_not_needed_again(model: VisionLanguageModel) -> None:
    engine = Engine(model, replace(small_cache(model, 64), image_bytes=0))  # and no image is kept for others
    asked = [prompt(model, seed, images=1) for seed in (1, 2)]
    numbers = [engine.add(replace(inputs, images_CHW=(inputs.images_CHW[0].clone(),)), greedy(30)) for inputs in asked]
    pixels = [
        weakref.ref(picture.image) for answers in engine._answers.values() for picture in answers[0].state.source.pictures
    ]
    found: dict[int, list[Event]] = defaultdict(list)
    for _ in range(8):
        for event in engine.step():
            found[event.row].append(event)
    assert all(said(found[number]) for number in numbers)
    assert [image() for image in pixels] == [None, None]
    drain(engine, found=found)
    assert engine.scheduler.preemptions > 0
    assert [said(found[number]) for number in numbers] == [plain(model, inputs, 30) for inputs in asked]
    assert engine.runner._stacked is None


def test_a_drawn_number_that_is_given_back_is_drawn_again() -> None:
    sampler, other = (Sampler(greedy(4, do_sample=True, seed=1), [1]) for _ in range(2))
    first = sampler.draw()
    sampler.give_back(first)
    assert [sampler.draw(), sampler.draw()] == [other.draw(), other.draw()]
