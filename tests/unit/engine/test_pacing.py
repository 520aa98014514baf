"""Answers go on while others' images are encoded: one group of images in each pass, and nobody starves."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch

from asking import assert_nothing_held, drain, greedy, plain, prompt, said
from idefics.engine import engine as engine_module
from idefics.engine import pacing
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.request import Event, Token
from idefics.model import peaks
from idefics.model.base import VisionLanguageModel

ROOMY = Limits(rows=8, tokens=400, block=4)


@pytest.fixture
def encoded(encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A group is one image."""
    monkeypatch.setattr(peaks, "VISION_BYTES", 1)
    return encoded


def one_decodes(model: VisionLanguageModel) -> tuple[Engine, int]:
    engine = Engine(model, ROOMY)
    number = engine.add(prompt(model, 1, images=0), greedy(20))
    engine.step()
    assert engine.scheduler.running[0].decoding
    return engine, number


def passes(engine: Engine, found: dict[int, list[Event]], encoded: list[int]) -> list[tuple[int, set[int]]]:
    """Of each pass, images encoded and whose tokens came, until all answers have ended."""
    every = []
    while engine.busy:
        encoded.clear()
        events = engine.step()
        for event in events:
            found[event.row].append(event)
        every.append((sum(encoded), {event.row for event in events if isinstance(event, Token)}))
    return every


@pytest.mark.parametrize("split", [[1] * 6, [6], [2, 1, 3]], ids=str)
def test_six_photos_arrive_while_an_answer_is_given(model: VisionLanguageModel, encoded: list[int], split: list[int]) -> None:
    prompts = [prompt(model, 50 + seed, images=count) for seed, count in enumerate(split)]
    expected = [plain(model, inputs, 5) for inputs in prompts]
    alone = plain(model, prompt(model, 1, images=0), 20)
    engine, decoding = one_decodes(model)
    numbers = [engine.add(inputs, greedy(5)) for inputs in prompts]
    found: dict[int, list[Event]] = defaultdict(list)
    every = passes(engine, found, encoded)
    with_images = [(images, rows) for images, rows in every if images]
    assert [images for images, _ in with_images] == [1] * 6
    assert all(decoding in rows for _, rows in with_images), "the answer stood still"
    firsts = [next(i for i, (_, rows) in enumerate(every) if number in rows) for number in numbers]
    assert firsts == sorted(firsts), "somebody overtook an older one"
    assert [said(found[number]) for number in numbers] == expected
    assert len(said(found[decoding])) == 19
    assert said(found[decoding]) == alone[1:]
    assert_nothing_held(engine)


def test_an_answer_that_stands_still_is_noticed(
    model: VisionLanguageModel, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "paced", lambda slices, _: slices)
    engine, _ = one_decodes(model)
    for seed in range(6):
        engine.add(prompt(model, 50 + seed, images=1), greedy(5))
    assert max(images for images, _ in passes(engine, defaultdict(list), encoded)) == 6


def test_with_nobody_waiting_all_are_encoded_in_one_pass(model: VisionLanguageModel, encoded: list[int]) -> None:
    engine = Engine(model, ROOMY)
    for seed in range(6):
        engine.add(prompt(model, 50 + seed, images=1), greedy(2))
    engine.step()
    assert encoded == [1] * 6


@pytest.mark.usefixtures("encoded")
def test_what_is_known_is_not_waited_for(model: VisionLanguageModel) -> None:
    known = [prompt(model, 50 + seed, images=1) for seed in range(4)]
    engine = Engine(model, ROOMY)
    for inputs in known:
        engine.add(inputs, greedy(2))
    drain(engine)
    misses = engine.runner.eyes.images.misses
    engine.add(prompt(model, 1, images=0), greedy(20))
    engine.step()
    engine.add(prompt(model, 60, images=1), greedy(9))  # the oldest lacks an image, those after it lack none
    numbers = [engine.add(inputs, greedy(9)) for inputs in known]
    rows = {event.row for event in engine.step()}
    assert set(numbers) < rows
    assert engine.runner.eyes.images.misses == misses + 1
    drain(engine)


def test_a_group_is_smaller_on_a_cpu(model: VisionLanguageModel, encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt(model, 50 + seed, images=1) for seed in range(6)]
    largest = max(model.encoding_bytes(inputs.images_CHW[0]) for inputs in prompts)
    monkeypatch.setattr(peaks, "VISION_BYTES", pacing.CPU_PART * 2 * largest)
    engine, _ = one_decodes(model)
    for inputs in prompts:
        engine.add(inputs, greedy(2))
    encoded.clear()
    engine.step()
    assert 2 <= sum(encoded) < 6


def test_nobody_starves_or_says_anything_else(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many requests that join while others decode, in a cache too small for them, guesses included."""
    monkeypatch.setattr(peaks, "VISION_BYTES", 1)
    rng = random.Random(1)
    engine = Engine(model, Limits(rows=6, tokens=40, block=4, cache_bytes=80 * token_bytes(model)[torch.device("cpu")]))
    prompts = [prompt(model, 70 + seed, shared=seed % 3) for seed in range(24)]
    found: dict[int, list[Event]] = defaultdict(list)
    numbers = []
    for inputs in prompts:
        numbers.append(engine.add(inputs, greedy(8, prompt_lookup_num_tokens=rng.choice((None, 3)))))
        for _ in range(rng.randint(0, 2)):
            for event in engine.step():
                found[event.row].append(event)
    drain(engine, found=found)
    assert engine.scheduler.preemptions > 0
    for number, inputs in zip(numbers, prompts, strict=True):
        assert said(found[number]) == plain(model, inputs, 8)
    assert_nothing_held(engine)
