"""`generate` keeps its engine from call to call, and never past a change of the model."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import idefics
from idefics import Idefics2ForConditionalGeneration, Idefics2Processor
from idefics.engine.limits import Limits, token_bytes
from idefics.errors import OptionError
from idefics.hf import kept_engine
from idefics.hf.kept_engine import KEPT_BYTES, state_of
from idefics.linears.packing import pack
from idefics.model.idefics2 import Idefics2

Model = Idefics2ForConditionalGeneration


@pytest.fixture
def model(tiny_checkpoint: Path) -> Model:
    return idefics.AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)


@pytest.fixture
def ask(processor: Idefics2Processor, pictures: list[Image.Image]) -> Callable[..., list[float]]:
    inputs = dict(processor(text="<image>In the image it is red and blue and red", images=pictures[0], return_tensors="pt"))

    def ask(model: Model, tokens: int = 5) -> list[float]:
        out = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, logprobs=1, return_dict_in_generate=True)
        ((answer,),) = out.completions
        return [*map(float, answer.token_ids), *answer.logprobs]

    return ask


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were encoded together, each time."""
    counts: list[int] = []
    honest = Idefics2.encode_images

    def counting(self: Any, images: Any) -> Tensor:
        counts.append(len(images))
        return honest(self, images)

    monkeypatch.setattr(Idefics2, "encode_images", counting)
    return counts


def test_a_second_question_computes_only_what_is_new(
    model: Model, processor: Idefics2Processor, pictures: list[Image.Image], encoded: list[int]
) -> None:
    fresh = copy.deepcopy(model)
    texts = ["<image>In the image it is red and blue", "<image>In the image it is red and then", "<image>no"]
    questions = [dict(processor(text=text, images=pictures[0], return_tensors="pt")) for text in texts]
    asked = [model.generate(**question, max_new_tokens=4) for question in questions]
    assert encoded == [1]
    images, scheduler = model.engine.runner.eyes.images, model.engine.scheduler
    assert (images.misses, images.hits) == (1, 1), "the second shares all that the image is needed for"
    assert scheduler.found > 0, "the beginning that two prompts share was computed twice"
    for question, answer in zip(questions, asked, strict=True):
        fresh.drop_engine()
        assert torch.equal(answer, fresh.generate(**question, max_new_tokens=4))
    assert encoded == [1, 1, 1, 1]


class Switched(nn.Linear):
    """As adapters are that can be turned off: what it computes is no matter of tensors alone."""

    on = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (-1.0 if self.on else 1.0)


def _first(model: Model) -> nn.Parameter:
    return model.model.text_model.layers[0].self_attn.v_proj.weight


def _add(model: Model) -> None:
    with torch.no_grad():
        _first(model).add_(0.5)


def _step(model: Model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    ids = torch.tensor([[1, 5, 9, 6]])
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def _through_data(model: Model) -> None:
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def _data(model: Model) -> None:
    _first(model).data = _first(model).data.flip(0).clone()


def _put(model: Model) -> None:
    model.model.text_model.layers[0].self_attn.v_proj.weight = nn.Parameter(_first(model).detach().flip(0).clone())


def _load(model: Model) -> None:
    model.load_state_dict({name: value.flip(-1) for name, value in model.state_dict().items()})


def _inner_load(model: Model) -> None:
    model.model.load_state_dict({name: value.flip(-1) for name, value in model.model.state_dict().items()}, assign=True)


def _dtype(model: Model) -> None:
    model.to(torch.float64)


def _inner_dtype(model: Model) -> None:
    model.model.to(torch.float64)


def _hook(model: Model) -> None:
    model.model.text_model.layers[0].register_forward_hook(lambda *given: given[-1].flip(-1))


def _patch(model: Model) -> None:
    layer = model.model.text_model.layers[0].self_attn.v_proj
    layer.forward = lambda x: nn.Linear.forward(layer, x) * 0.5


def _adapter(model: Model) -> None:
    attention = model.model.text_model.layers[0].self_attn
    switched = Switched(*attention.v_proj.weight.shape[::-1], bias=False)
    switched.weight = attention.v_proj.weight
    attention.v_proj = switched.eval()


CHANGES = [_add, _step, _through_data, _data, _put, _load, _inner_load, _dtype, _inner_dtype, _hook, _patch, _adapter]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_changed_model_answers_as_one_that_was_never_asked(
    tiny_checkpoint: Path, model: Model, ask: Any, change: Callable[[Model], None]
) -> None:
    before = ask(model)
    assert ask(model) == pytest.approx(before, abs=1e-5)
    change(model)
    fresh = idefics.AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)
    change(fresh)
    wanted = ask(fresh)
    assert wanted != pytest.approx(before, abs=1e-7), "the change changes nothing"
    assert ask(model) == wanted


@pytest.mark.parametrize("change", [_add, _through_data, _put, _hook], ids=lambda change: change.__name__.strip("_"))
def test_without_looking_the_answer_would_be_wrong(
    tiny_checkpoint: Path, model: Model, ask: Any, change: Callable[[Model], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_engine, "state_of", lambda _: "as ever")
    ask(model)
    change(model)
    fresh = idefics.AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)
    change(fresh)
    assert ask(model) != pytest.approx(ask(fresh), abs=1e-4)


def test_an_adapter_is_asked_anew_at_every_call(model: Model, ask: Any) -> None:
    before = ask(model)
    _adapter(model)
    assert ask(model) != pytest.approx(before, abs=1e-3)
    model.model.text_model.layers[0].self_attn.v_proj.on = False
    assert ask(model) == before
    assert model.engine is not model.engine


def test_copies_have_engines_of_their_own(model: Model, ask: Any) -> None:
    before = ask(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.engine.model is twin.model
        assert ask(twin) == before
        _add(twin)
        assert ask(twin) != before
    shallow = copy.copy(model)
    assert shallow.engine is model.engine, "it is the same network"
    assert ask(model) == pytest.approx(before, abs=1e-5)


def test_a_network_that_was_exchanged_has_no_engine_yet(model: Model) -> None:
    kept = model.engine
    model.model = copy.deepcopy(model.model)
    assert model.engine is not kept
    assert model.engine.model is model.model


def test_training_has_the_memory_to_itself(model: Model, ask: Any) -> None:
    answer = ask(model)
    for drop in (model.train, model.eval, model.drop_engine, lambda: model.to("cpu")):
        ask(model)
        cache = weakref.ref(model.engine.runner.cache)
        drop()
        gc.collect()
        assert cache() is None, drop
    model.train()
    assert model.engine is not model.engine, "kept beside a training step"
    assert ask(model) == answer
    model.eval()
    model.model.text_model.train()
    assert state_of(model.model) is None


def test_the_cache_is_made_for_the_call(model: Model, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    each = max(token_bytes(model.model).values())
    monkeypatch.setattr(kept_engine, "KEPT_BYTES", 64 * each)
    ask(model, 5)
    small = model.engine
    assert small.scheduler.pool.blocks * 16 == 64
    ask(model, 9)
    assert model.engine is small
    ask(model, 90)
    large = model.engine
    assert large is not small
    assert large.scheduler.pool.blocks * 16 == 128
    ask(model, 5)
    assert model.engine is large
    ask(model, 500 - 30)
    assert model.engine.scheduler.pool.blocks * 16 == 512


def test_the_cache_is_never_larger_than_what_is_free(model: Model, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ask(model, 20)
    each = 16 * max(token_bytes(model.model).values())
    model.drop_engine()
    monkeypatch.setattr("idefics.engine.limits.free_bytes", lambda _: 10 * each)
    assert ask(model, 20) == wanted
    assert model.engine.scheduler.pool.blocks == 5
    kept = model.engine
    ask(model, 20)
    assert model.engine is kept, "the same call would get no more"


def test_real_models_keep_a_gibibyte(model: Model) -> None:
    each = 16 * max(token_bytes(model.model).values())
    assert model.engine.limits.cache_bytes == min(KEPT_BYTES // each, Limits().rows * 512 // 16) * each


def test_whoever_interrupts_a_pass_leaves_nothing_behind(model: Model, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(model)
    kept = model.engine
    with pytest.raises(OptionError):
        model.generate(torch.tensor([[1, 5]]), max_new_tokens=2, num_beams=2, do_sample=True)
    assert model.engine is kept

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept.scheduler, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(torch.tensor([[1, 5, 6, 7]]), max_new_tokens=2)
    assert model.engine is not kept


def test_threads_share_one_engine(
    model: Model, processor: Idefics2Processor, pictures: list[Image.Image], encoded: list[int]
) -> None:
    texts = [f"<image>In the image it is {word}" for word in ("red", "blue", "one", "two")]
    rows = [dict(processor(text=text, images=picture, return_tensors="pt")) for text in texts for picture in pictures]
    alone = []
    for row in rows:
        alone.append(model.generate(**row, max_new_tokens=6).tolist())
        model.drop_engine()
    encoded.clear()
    together = threading.Barrier(4)

    def ask(row: dict[str, Tensor]) -> Any:
        together.wait(30)
        return model.generate(**row, max_new_tokens=6).tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, rows)) == alone
    assert sum(encoded) == len(pictures)


def test_a_packed_model_keeps_its_engine(model: Model, ask: Any) -> None:
    pack(model.model)
    ask(model)
    kept = model.engine
    ask(model)
    assert model.engine is kept
    assert kept.runner.eyes.images.misses == 1
