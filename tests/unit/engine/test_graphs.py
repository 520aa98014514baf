"""Steps with static shapes, run without recording: the same tokens as kernel by kernel, and nothing that waits for a device."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch

import gated
from asking import assert_nothing_held, drain, greedy, plain, prompt, said
from fakes import tiny_config, tiny_model
from idefics.engine import paged_cache
from idefics.engine.engine import Engine
from idefics.engine.graphs import DecodeGraphs, Shape, StaticPass, graphs_fit, power_of_two
from idefics.engine.limits import Limits
from idefics.engine.paged_cache import PagedKVCache, Segment
from idefics.engine.sampling import Draw, ban, pick
from idefics.engine.sampling_params import SamplingParams
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.decoupled import DecoupledEmbedding

STATIC = Limits(rows=6, tokens=16, block=4, graphs=True)


@pytest.fixture(scope="module", params=["idefics2", "idefics"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    if request.param == "idefics":
        return gated.tiny_model(seed=1, backend="auto")
    return tiny_model(tiny_config(), seed=1, std=0.3, backend="auto")


def graphs_of(engine: Engine) -> DecodeGraphs:
    assert engine.runner.graphs is not None
    return engine.runner.graphs


@pytest.mark.parametrize("together", [1, 3, 6])
def test_answers_are_those_of_the_plain_path(model: VisionLanguageModel, together: int) -> None:
    engine = Engine(model, STATIC)
    if isinstance(model, gated.Idefics1):  # whose steps are static only if no answer sees an image
        prompts = [prompt(model, 100 * together + seed, images=0) for seed in range(6)]
    else:
        prompts = [prompt(model, 100 * together + seed, shared=seed % 2) for seed in range(6)]
    for first in range(0, 6, together):
        batch = prompts[first : first + together]
        numbers = [engine.add(inputs, greedy(6 + 9 * i)) for i, inputs in enumerate(batch)]
        found = drain(engine)
        for i, (number, inputs) in enumerate(zip(numbers, batch, strict=True)):
            assert said(found[number]) == plain(model, inputs, 6 + 9 * i)
    assert_nothing_held(engine)
    shapes = graphs_of(engine).shapes
    assert max(rows for rows, _ in shapes) == power_of_two(together), "answers that end one by one make smaller shapes"
    assert all(number == power_of_two(number) for shape in shapes for number in shape)


def test_steps_beside_prompts_may_read_blocks_in_place(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_cache, "reads_in_place", lambda _: True)
    engine = Engine(model, Limits(rows=6, tokens=16, block=4))
    prompts = [prompt(model, 40 + seed, shared=seed % 2) for seed in range(6)]
    numbers = [engine.add(inputs, greedy(6 + 9 * i)) for i, inputs in enumerate(prompts)]
    found = drain(engine)
    for i, (number, inputs) in enumerate(zip(numbers, prompts, strict=True)):
        assert said(found[number]) == plain(model, inputs, 6 + 9 * i)


def test_longer_answers_take_wider_tables(model: VisionLanguageModel) -> None:
    engine = Engine(model, Limits(rows=2, tokens=16, block=2, graphs=True))
    inputs = prompt(model, 4, images=0)
    number = engine.add(inputs, greedy(60))
    assert said(drain(engine)[number]) == plain(model, inputs, 60)
    assert graphs_of(engine).shapes == [(1, 16), (1, 32), (1, 64)]


def test_a_step_that_sees_images_is_not_static() -> None:
    model = gated.tiny_model(seed=1)
    engine = Engine(model, STATIC)
    inputs = prompt(model, 3, images=2)
    number = engine.add(inputs, greedy(5))
    assert said(drain(engine)[number]) == plain(model, inputs, 5)
    assert graphs_of(engine).shapes == []


def test_only_one_device_and_only_where_asked(model: VisionLanguageModel) -> None:
    assert Engine(model).runner.graphs is None, "nothing is gained on a CPU"
    assert graphs_fit(model)
    head = copy.deepcopy(model.lm_head)
    model.lm_head.to("meta")
    try:
        assert not graphs_fit(model)
    finally:
        model.lm_head = head


@pytest.mark.parametrize("good_steps", [0, 3])
def test_a_failure_falls_back_for_good(good_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_config(), seed=1, std=0.3)
    engine = Engine(model, STATIC)
    attend, calls = StaticPass.attend, 0

    def failing(self: StaticPass, layer: int, *args: torch.Tensor, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2 * good_steps + 1:  # in the middle of a step: its first layer has written
            raise RuntimeError("no kernel image is available\nfor execution")
        return attend(self, layer, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StaticPass, "attend", failing)
    prompts = [prompt(model, seed) for seed in range(3)]
    numbers = [engine.add(inputs, greedy(10)) for inputs in prompts]
    with pytest.warns(UserWarning, match=r"as a CUDA graph failed \(no kernel image is available\); from now on") as told:
        found = drain(engine)
    assert len(told) == 1
    assert not graphs_of(engine).shortcut.open
    assert [said(found[number]) for number in numbers] == [plain(model, inputs, 10) for inputs in prompts]
    at_the_end = calls
    engine.add(prompts[0], greedy(4))
    drain(engine)
    assert calls == at_the_end, "it is not tried again"
    assert_nothing_held(engine)


def test_what_was_recorded_goes_with_the_shortcut(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its memory would be missing for good where memory was what recording failed for."""
    engine = Engine(model, Limits(rows=2, tokens=16, block=2, graphs=True))
    graphs = graphs_of(engine)
    made, buffers = DecodeGraphs._made, []

    def scarce(self: DecodeGraphs, rows_RX: torch.Tensor) -> Shape:
        if buffers:
            raise RuntimeError("not enough memory for it")
        buffers.append(weakref.ref(rows_RX))
        self._pool = object()
        return made(self, rows_RX)

    monkeypatch.setattr(DecodeGraphs, "_made", scarce)
    inputs = prompt(model, 4, images=0)
    number = engine.add(inputs, greedy(60))
    with pytest.warns(UserWarning, match="not enough memory"):
        assert said(drain(engine)[number]) == plain(model, inputs, 60)
    assert graphs.shapes == []
    assert graphs._pool is None
    assert [buffer() for buffer in buffers] == [None]


def test_padding_touches_nobodys_blocks(model: VisionLanguageModel) -> None:
    text = model.config.text_config
    cache = PagedKVCache(
        text, blocks=8, size=4, dtype=torch.float32, devices=[torch.device("cpu")] * text.num_hidden_layers,
        heads=text.num_key_value_heads,
    )  # fmt: skip
    assert all(len(buffer) == 9 for buffer in cache.keys)
    with torch.inference_mode():
        DecodeGraphs(model, cache).run([5, 6, 7], [Segment([2], 0, 1), Segment([4, 1], 5, 1), Segment([3], 3, 1)])
    written = {int(block) for buffer in (*cache.keys, *cache.values) for block in buffer.flatten(1).any(1).nonzero()}
    assert written == {2, 1, 3, cache.scratch}


def test_a_step_asks_the_device_nothing(model: VisionLanguageModel) -> None:
    """On the meta device there are no numbers to ask for: whatever would make a GPU wait raises."""
    with torch.device("meta"):
        empty = type(model)(model.config, backend="auto").eval()  # type: ignore[arg-type, call-arg]
    text = model.config.text_config
    cache = PagedKVCache(
        text, blocks=8, size=4, dtype=torch.float32, devices=[torch.device("meta")] * text.num_hidden_layers,
        heads=text.num_key_value_heads,
    )  # fmt: skip
    graphs = DecodeGraphs(empty, cache)
    segments = [Segment([2], 0, 1), Segment([4, 1], 5, 1), Segment([3], 3, 1)]
    with torch.inference_mode():
        logits_RV = graphs.run([5, 6, 7], segments)
        assert logits_RV is not None
        assert logits_RV.shape == (3, text.vocab_size)
        allowed_RV = logits_RV.clone()
        ban(allowed_RV, [(1, 2), (), (3,)])
        p = SamplingParams(do_sample=True, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9)
        assert pick(logits_RV, allowed_RV, [None, Draw(p, 0.5), None]).shape == (3, 3)


def test_the_meta_device_notices_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_forward = DecoupledEmbedding.forward

    def asking(self: DecoupledEmbedding, input: torch.Tensor) -> torch.Tensor:
        return plain_forward(self, input) if (input >= self.num_embeddings).any() else torch.zeros(())

    monkeypatch.setattr(DecoupledEmbedding, "forward", asking)
    with pytest.warns(UserWarning, match="as a CUDA graph failed"), pytest.raises(AssertionError):
        test_a_step_asks_the_device_nothing(gated.tiny_model(seed=1))
