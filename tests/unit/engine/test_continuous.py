"""Requests that join, share, are interrupted and leave: what each answers is what it answers alone, on the plain path.

SOAK=1000 in the environment sends as many requests through the last test.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from asking import assert_nothing_held, drain, greedy, plain, prompt, said
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.request import Ended, Event, Token
from idefics.engine.runner import Runner
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.sequences import Slice
from idefics.errors import InputError, NumericsError, OptionError, OutOfMemory
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

REQUESTS = int(os.environ.get("SOAK", "100"))
SMALL = Limits(rows=6, tokens=16, block=4)


@pytest.mark.parametrize("together", [1, 2, 5, 16])
def test_answers_are_those_of_the_plain_path(model: VisionLanguageModel, together: int) -> None:
    engine = Engine(model, SMALL)
    prompts = [prompt(model, 100 * together + seed, shared=seed % 2) for seed in range(16)]
    for first in range(0, 16, together):
        batch = prompts[first : first + together]
        numbers = [engine.add(inputs, greedy(4 + i % 5)) for i, inputs in enumerate(batch)]
        found = drain(engine)
        for i, (number, inputs) in enumerate(zip(numbers, batch, strict=True)):
            assert said(found[number]) == plain(model, inputs, 4 + i % 5)
    assert_nothing_held(engine)


def test_joining_late_and_a_cache_too_small_change_nothing(model: VisionLanguageModel) -> None:
    engine = Engine(model, Limits(rows=6, tokens=16, block=4, cache_bytes=80 * token_bytes(model)[torch.device("cpu")]))
    prompts = [prompt(model, seed, shared=seed % 3) for seed in range(20)]
    found: dict[int, list[Event]] = defaultdict(list)
    numbers = []
    for inputs in prompts:
        numbers.append(engine.add(inputs, greedy(12)))
        for event in engine.step():
            found[event.row].append(event)
    drain(engine, found=found)
    assert engine.scheduler.preemptions > 0
    for number, inputs in zip(numbers, prompts, strict=True):
        assert said(found[number]) == plain(model, inputs, 12)
    assert_nothing_held(engine)


def test_a_second_turn_encodes_and_computes_only_what_is_new(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, SMALL)
    first = prompt(model, 3, images=2)
    number = engine.add(first, greedy(6))
    answer = said(drain(engine)[number])
    assert engine.runner.eyes.images.misses == 2
    more = torch.tensor([[*answer, 20, 21, 22]])
    ids = torch.cat((first.input_ids_BT, more), dim=1)
    seen = None if first.seen_BT is None else torch.cat((first.seen_BT, first.seen_BT[:, -1:].expand_as(more)), dim=1)
    second = ModelInputs(
        input_ids_BT=ids,
        attention_mask_BT=torch.ones_like(ids),
        images_CHW=first.images_CHW,
        images_per_row=(2,),
        seen_BT=seen,
    )
    computed: list[int] = []
    run = engine.runner.run

    def counted(slices: Sequence[Slice]) -> list[torch.Tensor]:
        computed.append(sum(len(piece.ids) for piece in slices))
        return run(slices)

    monkeypatch.setattr(engine.runner, "run", counted)
    number = engine.add(second, greedy(1))
    assert said(drain(engine)[number]) == plain(model, second, 1)
    known = (first.input_ids_BT.shape[1] + 5) // 4 * 4
    assert sum(computed) == ids.shape[1] - known
    assert engine.runner.eyes.images.misses == 2, "an image was encoded again"


def test_another_image_is_another_prompt(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    first = prompt(model, 5, images=1)
    other = ModelInputs(
        input_ids_BT=first.input_ids_BT,
        attention_mask_BT=first.attention_mask_BT,
        images_CHW=(first.images_CHW[0].flip(2),),
        images_per_row=(1,),
        seen_BT=first.seen_BT,
    )
    for inputs in (first, other):
        number = engine.add(inputs, greedy(8))
        assert said(drain(engine)[number]) == plain(model, inputs, 8)
    assert plain(model, first, 8) != plain(model, other, 8), "the images do not matter"


def test_guesses_change_nothing_and_save_passes(model: VisionLanguageModel) -> None:
    passes = []
    for lookup in (None, 4):
        engine = Engine(model, SMALL)
        count = 0
        prompts = [prompt(model, seed) for seed in range(6)]
        numbers = [engine.add(inputs, greedy(40, prompt_lookup_num_tokens=lookup)) for inputs in prompts]
        found: dict[int, list[Event]] = defaultdict(list)
        while engine.busy:
            count += 1
            for event in engine.step():
                found[event.row].append(event)
        passes.append(count)
        for number, inputs in zip(numbers, prompts, strict=True):
            assert said(found[number]) == plain(model, inputs, 40)
        assert_nothing_held(engine)
    assert passes[1] < passes[0]


def test_guesses_draw_the_same_tokens(model: VisionLanguageModel) -> None:
    drawn = []
    for lookup in (None, 3):
        engine = Engine(model, SMALL)
        params = greedy(20, do_sample=True, temperature=0.7, seed=3, prompt_lookup_num_tokens=lookup)
        number = engine.add(prompt(model, 1), params)
        drawn.append(said(drain(engine)[number]))
    assert drawn[0] == drawn[1]


def test_answers_to_one_prompt_share_it(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    inputs = prompt(model, 7, images=2)
    length = inputs.input_ids_BT.shape[1]
    number = engine.add(inputs, greedy(30, do_sample=True, temperature=5.0, seed=0, n=4))
    while engine.busy and len(engine.scheduler.running) < 4:
        engine.step()
    blocks = [tuple(answer.blocks[: (length - 1) // 4]) for answer in engine.scheduler.running]
    assert len(set(blocks)) == 1
    assert set(drain(engine)) == {number}


def test_cancelled_at_any_time_and_others_go_on(model: VisionLanguageModel) -> None:
    for wait in range(6):
        engine = Engine(model, SMALL)
        kept, left = prompt(model, 1), prompt(model, 2)
        numbers = [engine.add(inputs, greedy(6)) for inputs in (left, kept)]
        found: dict[int, list[Event]] = defaultdict(list)
        for _ in range(wait):
            for event in engine.step():
                found[event.row].append(event)
        ended = engine.cancel(numbers[0])
        assert [(event.row, event.finish) for event in ended if isinstance(event, Ended)] == [(numbers[0], "cancelled")]
        assert engine.cancel(numbers[0]) == []
        assert said(drain(engine, found=found)[numbers[1]]) == plain(model, kept, 6)
        assert said(found[numbers[0]]) == plain(model, left, 6)[: len(said(found[numbers[0]]))]
        assert_nothing_held(engine)


def test_time_is_over(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    late = engine.add(prompt(model, 1), greedy(100), deadline=time.monotonic() + 0.02)
    found: dict[int, list[Event]] = defaultdict(list)
    while engine.busy:
        for event in engine.step():
            found[event.row].append(event)
        time.sleep(0.001)
    assert found[late][-1] == Ended(row=late, candidate=0, finish="deadline")
    assert_nothing_held(engine)


def test_streams_side_by_side(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    prompts = [prompt(model, seed) for seed in (1, 2)]
    streams = [engine.stream(inputs, [greedy(6)]) for inputs in prompts]
    found: list[list[int]] = [[], []]
    for tokens in zip(*streams, strict=True):
        for index, token in enumerate(tokens):
            found[index].append(token.id)
    assert found == [plain(model, inputs, 6) for inputs in prompts]
    unfinished = engine.stream(prompts[0], [greedy(6)])
    next(unfinished)
    unfinished.close()
    assert not engine.busy
    assert_nothing_held(engine)


def test_events_of_others_are_kept_while_one_streams(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    first, second = prompt(model, 1), prompt(model, 2)
    number = engine.add(first, greedy(4))
    assert [token.id for token in engine.stream(second, [greedy(8)])] == plain(model, second, 8)
    assert said(drain(engine)[number]) == plain(model, first, 4)
    assert not engine.busy


def test_an_image_that_fails_ends_its_own_request_only(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, encode = Engine(model, SMALL), type(model).encode_images
    good, bad = prompt(model, 1, images=1), prompt(model, 2, images=1)
    bad = replace(bad, images_CHW=(torch.full_like(bad.images_CHW[0], 100.0),))

    def picky(self: VisionLanguageModel, images: Sequence[Any]) -> torch.Tensor:
        if any(float(image.max()) == 100.0 for image in images):
            raise InputError("an image that cannot be encoded")
        return encode(self, images)

    monkeypatch.setattr(type(model), "encode_images", picky)
    numbers = [engine.add(inputs, greedy(5)) for inputs in (bad, good)]
    found = drain(engine)
    (ended,) = found[numbers[0]]
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, InputError)
    assert said(found[numbers[1]]) == plain(model, good, 5)
    assert_nothing_held(engine)


def test_what_is_no_number_ends_its_own_request_and_leaves_nothing_behind(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    bad, good = prompt(model, 1, images=1), prompt(model, 2, images=0)
    bad = ModelInputs(
        input_ids_BT=bad.input_ids_BT,
        attention_mask_BT=bad.attention_mask_BT,
        images_CHW=(bad.images_CHW[0] * float("nan"),),
        images_per_row=(1,),
        seen_BT=bad.seen_BT,
    )
    numbers = [engine.add(inputs, greedy(5)) for inputs in (bad, good)]
    found = drain(engine)
    assert isinstance(found[numbers[0]][-1], Ended)
    assert isinstance(found[numbers[0]][-1].error, NumericsError)
    assert said(found[numbers[1]]) == plain(model, good, 5)
    for seed in range(8):  # others take its blocks
        inputs = prompt(model, 30 + seed)
        number = engine.add(inputs, greedy(9))
        assert said(drain(engine)[number]) == plain(model, inputs, 9)


def _raise(*_: Any) -> Any:
    raise ValueError("somebody's own mistake")


def test_a_prompt_that_failed_is_computed_anew(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    inputs = prompt(model, 4, images=1, shared=1)
    for _ in range(2):
        number = engine.add(inputs, greedy(8))
        assert said(drain(engine)[number]) == plain(model, inputs, 8)
    number = engine.add(inputs, greedy(8), guides=[_raise])
    assert isinstance(drain(engine)[number][-1], Ended)
    number = engine.add(inputs, greedy(8))
    assert said(drain(engine)[number]) == plain(model, inputs, 8), "blocks were found that had been wiped"


def test_mistakes_of_stops_and_guides_concern_their_request_alone(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    good = prompt(model, 1)
    numbers = [
        engine.add(prompt(model, 2), greedy(5), stops=[_raise]),
        engine.add(prompt(model, 3), greedy(5), guides=[_raise]),
        engine.add(good, greedy(5)),
    ]
    found = drain(engine)
    for number in numbers[:2]:
        ended = found[number][-1]
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, ValueError)
    assert said(found[numbers[2]]) == plain(model, good, 5)
    assert_nothing_held(engine)


def test_memory_that_ends_for_all_answers_of_one_request(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, SMALL)
    number = engine.add(prompt(model, 1, images=0), greedy(9, do_sample=True, seed=0, n=2))
    while len(engine.scheduler.running) < 2:
        engine.step()
    monkeypatch.setattr(Runner, "run", lambda *_: _full())
    ended = [event for event in drain(engine)[number] if isinstance(event, Ended)]
    assert [type(event.error) for event in ended] == [OutOfMemory] * 2
    assert_nothing_held(engine)


def test_streams_in_threads_of_their_own(model: VisionLanguageModel) -> None:
    engine = Engine(model, SMALL)
    prompts = [prompt(model, seed) for seed in range(6)]
    found: dict[int, list[int]] = {}

    def ask(place: int) -> None:
        found[place] = [token.id for token in engine.stream(prompts[place], [greedy(20)])]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(prompts))] == [plain(model, inputs, 20) for inputs in prompts]
    assert not engine.busy
    assert_nothing_held(engine)


def test_one_image_of_two_requests_is_encoded_once(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, Limits(rows=6, tokens=200, block=4))
    encode, seen = type(model).encode_images, []

    def counted(self: VisionLanguageModel, images: Any) -> torch.Tensor:
        seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(model), "encode_images", counted)
    for _ in range(2):
        engine.add(prompt(model, 3, images=1), greedy(2))
    drain(engine)
    assert seen == [1]


def test_memory_that_ends_halves_the_pass_and_then_fails(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, SMALL)
    prompts = [prompt(model, seed) for seed in (1, 2)]
    numbers = [engine.add(inputs, greedy(6)) for inputs in prompts]
    run = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, slices: _full() if len(slices) > 1 else run(self, slices))
    found = drain(engine)
    assert [said(found[number]) for number in numbers] == [plain(model, inputs, 6) for inputs in prompts]
    monkeypatch.setattr(Runner, "run", lambda *_: _full())
    with pytest.raises(OutOfMemory, match=r"out of memory while computing .* use smaller images"):
        engine.generate(prompts[0], [greedy(2)])
    assert_nothing_held(engine)


def _full() -> Any:
    raise MemoryError


def test_what_can_never_fit_is_refused_with_the_numbers(model: VisionLanguageModel) -> None:
    engine = Engine(model, Limits(rows=2, tokens=8, block=4, cache_bytes=20 * token_bytes(model)[torch.device("cpu")]))
    held = engine.scheduler.pool.blocks * 4
    assert held == 20
    with pytest.raises(InputError, match=rf"and {held} new ones exceed the cache of {held} tokens; ask for at most"):
        engine.add(prompt(model, 1, images=0), greedy(held))
    with pytest.raises(OptionError, match="do not hold one block of 4 tokens"):
        Engine(model, Limits(cache_bytes=10, block=4)).add(prompt(model, 1), greedy(1))
    with pytest.raises(OptionError, match="beams are searched by generate"):
        engine.add(prompt(model, 1), greedy(2, num_beams=2))
    assert not engine.busy


@pytest.mark.parametrize(("given", "message"), [({"rows": 0}, "rows = 0"), ({"rows": 9, "tokens": 8}, "tokens = 8 is below")])
def test_limits_are_checked(given: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Limits(**given)


@dataclass(frozen=True)
class Asked:
    """A request of the soak."""

    inputs: ModelInputs
    params: SamplingParams
    fails: bool


def asked(model: VisionLanguageModel, seed: int, rng: random.Random) -> Asked:
    inputs, tokens = prompt(model, seed % 40, shared=seed % 3), rng.randint(1, 10)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": rng.choice((None, 3)), "n": rng.choice((1, 1, 1, 3))}
    if options["n"] > 1 or rng.random() < 0.3:
        options |= {"do_sample": True, "temperature": 2.0, "seed": seed}
    fails = bool(inputs.images_CHW) and rng.random() < 0.2
    if fails:
        first, *others = inputs.images_CHW
        assert isinstance(first, torch.Tensor)
        # Too small an image is refused when it is encoded, or, by the first generation, when it is asked about.
        unfit = torch.zeros(3, 2, 2) if inputs.seen_BT is None else first * float("inf")
        inputs = replace(inputs, images_CHW=(rng.choice((first * float("nan"), unfit)), *others))
    return Asked(inputs, greedy(tokens, **options), fails)


def test_soak(model: VisionLanguageModel) -> None:
    """Many mixed requests that join, leave, fail, end too late and are cancelled; nothing is held in the end."""
    rng = random.Random(0)
    engine = Engine(model, Limits(rows=6, tokens=16, block=4, cache_bytes=60_000, image_bytes=4_000))
    due: dict[int, Asked] = {}
    found: dict[int, list[Event]] = defaultdict(list)
    for seed in range(REQUESTS):
        one = asked(model, seed, rng)
        deadline = time.monotonic() + rng.choice((0.0, 0.005, 0.02)) if rng.random() < 0.1 else None
        due[engine.add(one.inputs, one.params, deadline=deadline)] = one
        if rng.random() < 0.15:
            for event in engine.cancel(rng.choice(list(due))):
                found[event.row].append(event)
        for _ in range(rng.randint(0, 3)):
            for event in engine.step():
                found[event.row].append(event)
        assert engine.runner.eyes.images.bytes <= 4_000
    drain(engine, found=found)
    assert len(found) == len(due)
    whole, ends, alone = 0, Counter[str](), Engine(model, SMALL)
    for number, one in due.items():
        expected = said_alone(alone, one) if number % 4 == 0 and not one.fails else {}
        for candidate in range(one.params.candidates):
            events = [event for event in found[number] if event.candidate == candidate]
            assert all(isinstance(event, Token) and event.finish is None for event in events[:-1])
            last = events[-1]
            assert last.finish is not None
            ends[last.finish] += 1
            assert not one.fails or not said(events)
            assert last.finish != "error" or one.fails
            if candidate in expected:
                assert said(events) == expected[candidate][: len(said(events))]
            whole += last.finish == "length"
    assert whole > REQUESTS / 2
    assert {"length", "error", "cancelled", "deadline"} <= set(ends)
    assert_nothing_held(engine)
    assert 0 < engine.runner.eyes.images.bytes <= 4_000
    assert engine.runner.eyes.images.bytes == sum(
        part.numel() * part.element_size() for encoded in engine.runner.eyes.images._images.values() for part in encoded
    )


def said_alone(engine: Engine, one: Asked) -> dict[int, list[int]]:
    """What each answer is where nobody else asks; of the likeliest tokens, on the plain path."""
    if not one.params.do_sample:
        return {0: plain(engine.model, one.inputs, one.params.max_new_tokens or 0)}
    number = engine.add(one.inputs, one.params)
    events = drain(engine)[number]
    return {c: said([event for event in events if event.candidate == c]) for c in range(one.params.candidates)}


@pytest.mark.parametrize("rows", [16, 64])
def test_many_rows_in_one_pass_say_what_each_says_alone(
    model: VisionLanguageModel, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, Limits(rows=rows, tokens=32 * rows, block=4))
    together: list[int] = []
    run = Runner.run

    def counted(self: Runner, slices: Sequence[Slice]) -> list[torch.Tensor]:
        together.append(sum(len(piece.ids) == 1 for piece in slices))
        return run(self, slices)

    monkeypatch.setattr(Runner, "run", counted)
    prompts = [prompt(model, 1_000 + seed, shared=seed % 4) for seed in range(rows)]
    numbers = [engine.add(inputs, greedy(8)) for inputs in prompts]
    found = drain(engine)
    assert max(together) == rows
    for number, inputs in zip(numbers, prompts, strict=True):
        assert said(found[number]) == plain(model, inputs, 8)
    assert_nothing_held(engine)
