"""The engine on a GPU: recorded steps against steps kernel by kernel, and both against the plain path on the CPU."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import gated
from asking import assert_nothing_held, drain, greedy, plain, prompt, said
from fakes import tiny_config, tiny_model
from idefics.engine import graphs
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.paged_cache import PagedKVCache, Segment
from idefics.engine.request import Event
from idefics.engine.sampling import Draw, ban, pick
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from middle import middle_idefics2

LIMITS = Limits(rows=8, tokens=32, block=16, cache_bytes=2**26, graphs=True)


@pytest.fixture(scope="module", params=["idefics2", "idefics"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    """On the CPU, float32; every part matters to its tokens."""
    if request.param == "idefics":
        return gated.tiny_model(seed=1, backend="auto")
    return tiny_model(tiny_config(), seed=1, std=0.3, backend="auto")


@pytest.fixture(scope="module")
def moved(model: VisionLanguageModel, device: torch.device) -> VisionLanguageModel:
    """The same on the GPU."""
    return copy.deepcopy(model).to(device)


@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("recorded", [True, False])
def test_answers_are_those_of_the_cpu(
    model: VisionLanguageModel, moved: VisionLanguageModel, together: int, recorded: bool
) -> None:
    engine = Engine(moved, replace(LIMITS, graphs=recorded))
    for images in (0, None):
        prompts = [prompt(model, 100 * together + seed, images=images) for seed in range(together)]
        numbers = [engine.add(inputs, greedy(12 + 5 * i)) for i, inputs in enumerate(prompts)]
        found = drain(engine)
        for i, (number, inputs) in enumerate(zip(numbers, prompts, strict=True)):
            assert said(found[number]) == plain(model, inputs, 12 + 5 * i)
    assert_nothing_held(engine)
    if recorded:
        assert engine.runner.graphs is not None
        assert engine.runner.graphs.shapes
        assert engine.runner.graphs.shortcut.open


def test_recorded_steps_are_the_steps(device: torch.device) -> None:
    """With the true head size, sharing and window, so with the kernel for blocks; in float32, token for token."""
    made = tiny_model(middle_idefics2(), seed=2, std=0.1, backend="auto").to(device)
    answers = []
    for recorded in (True, False):
        engine = Engine(made, replace(LIMITS, graphs=recorded, cache_bytes=2**28))
        ids = torch.randint(3, 400, (4, 200), generator=torch.Generator().manual_seed(0))
        prompts = [ModelInputs(input_ids_BT=row[None], attention_mask_BT=torch.ones_like(row[None])) for row in ids]
        numbers = [engine.add(inputs, greedy(100)) for inputs in prompts]  # past the window, and over two widths of tables
        found = drain(engine)
        answers.append([said(found[number]) for number in numbers])
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers[0]}) == 4, "all say the same: nothing is tested"


def test_a_second_turn(model: VisionLanguageModel, moved: VisionLanguageModel) -> None:
    engine = Engine(moved, replace(LIMITS, block=4))
    first = prompt(model, 3, images=2)
    number = engine.add(first, greedy(6))
    answer = said(drain(engine)[number])
    assert engine.runner.eyes.images.misses == 2
    more = torch.tensor([[*answer, 20, 21, 22]])
    ids = torch.cat((first.input_ids_BT, more), dim=1)
    looks = None if first.seen_BT is None else torch.cat((first.seen_BT, first.seen_BT[:, -1:].expand_as(more)), dim=1)
    second = replace(first, input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids), seen_BT=looks)
    number = engine.add(second, greedy(5))
    assert engine.scheduler.pool.free == engine.scheduler.pool.blocks
    assert said(drain(engine)[number]) == plain(model, second, 5)
    assert engine.runner.eyes.images.misses == 2, "an image was encoded again"


def test_many_that_join_and_leave(model: VisionLanguageModel, moved: VisionLanguageModel) -> None:
    room = 80 * max(token_bytes(moved).values())
    engine = Engine(moved, Limits(rows=4, tokens=16, block=4, cache_bytes=room, graphs=True))
    found: dict[int, list[Event]] = defaultdict(list)
    due = {}
    for seed in range(16):
        inputs = prompt(model, seed, shared=seed % 3)
        due[engine.add(inputs, greedy(9, prompt_lookup_num_tokens=(None, 3)[seed % 2]))] = inputs
        for event in engine.step():
            found[event.row].append(event)
    drain(engine, found=found)
    for number, inputs in due.items():
        assert said(found[number]) == plain(model, inputs, 9)
    assert_nothing_held(engine)


@pytest.mark.cuda_only
@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing"), torch.OutOfMemoryError()])
def test_a_recording_that_fails(
    model: VisionLanguageModel, moved: VisionLanguageModel, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(graphs, "record", failing)
    engine = Engine(moved, LIMITS)
    inputs = prompt(model, 2, images=0)
    number = engine.add(inputs, greedy(8))
    with pytest.warns(UserWarning, match="as a CUDA graph failed") as told:
        found = drain(engine)
    assert len([w for w in told if "from now on" in str(w.message)]) == 1
    assert said(found[number]) == plain(model, inputs, 8)


@pytest.mark.cuda_only
def test_a_step_waits_once(moved: VisionLanguageModel, device: torch.device) -> None:
    """What CUDA calls a synchronisation is an error from the second step on, but for the one that reads the tokens."""
    text = moved.config.text_config
    cache = PagedKVCache(
        text, blocks=8, size=16, dtype=moved.dtype, devices=[device] * text.num_hidden_layers, heads=text.num_key_value_heads
    )
    steps = graphs.DecodeGraphs(moved, cache)

    def step(past: int) -> torch.Tensor:
        logits_RV = steps.run([5, 6, 7], [Segment([block], past, 1) for block in (1, 2, 3)])
        assert logits_RV is not None
        allowed_RV = logits_RV.clone()
        ban(allowed_RV, [(1, 2), (), (3,)])
        p = SamplingParams(do_sample=True, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9)
        return pick(logits_RV, allowed_RV, [None, Draw(p, 0.5), None])

    with torch.inference_mode():
        step(0).tolist()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found.tolist()[0][2] == 1.0


def test_in_16_bits_answers_part_at_ties_only(device: torch.device) -> None:
    """Recorded or not, products are rounded differently; where answers part, both tokens must be nearly as likely."""
    made = tiny_model(middle_idefics2(), seed=2, std=0.1, backend="auto", dtype=torch.bfloat16).to(device)
    answers: list[Sequence[Event]] = []
    ids = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    for recorded in (True, False):
        engine = Engine(made, replace(LIMITS, graphs=recorded))
        number = engine.add(ModelInputs(input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids)), greedy(60, logprobs=2))
        answers.append(drain(engine)[number])
    for one, other in zip(*answers, strict=True):
        if one.id != other.id:  # type: ignore[union-attr]
            (_, best), (_, second) = one.top  # type: ignore[union-attr]
            assert best - second < 0.15
            break
