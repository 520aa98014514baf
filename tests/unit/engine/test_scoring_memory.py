"""Scores and beams share the engine's images, make logits in pieces, and tell where memory ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asking import drain, greedy, plain, prompt, said
from idefics.engine import scoring
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.prefill import Prefill
from idefics.errors import OutOfMemory
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel


def continued(inputs: ModelInputs) -> list[list[int]]:
    ids = inputs.input_ids_BT[0].tolist()
    return [[*ids, 11], [*ids, *range(12, 30)], [*ids, 20, 2, 21, 22]]


@torch.inference_mode()
def whole(model: VisionLanguageModel, inputs: ModelInputs) -> list[float]:
    """Every token's log-probability, by one pass."""
    ids_1T = inputs.input_ids_BT
    hidden = model(ids_1T, positions_BT=torch.arange(ids_1T.shape[1])[None], seen=model.see(inputs))
    logprobs_TV = model.logits(hidden)[0].float().log_softmax(-1)
    return [float(logprobs_TV[place, token]) for place, token in enumerate(ids_1T[0, 1:].tolist())]


def test_an_image_is_encoded_once_for_scores_beams_and_answers(model: VisionLanguageModel, encoded: list[int]) -> None:
    inputs, params = prompt(model, 3, images=2), greedy(6, num_beams=3)
    expected = scoring.score_continuations(model, inputs, continued(inputs), document_end=2)
    prompt_scores = scoring.score_prompt(model, inputs)
    (beams,) = Engine(model).generate(inputs, [params])
    answer = plain(model, inputs, 5)
    encoded.clear()
    engine = Engine(model, Limits(rows=4, tokens=64, block=4))
    for _ in range(2):
        assert engine.score(inputs, continued(inputs), document_end=2) == expected
        assert engine.score_prompt(inputs) == prompt_scores
        assert engine.generate(inputs, [params])[0] == beams
    assert engine._runner is None, "a cache of keys and values was made for nothing"
    number = engine.add(inputs, greedy(5))
    assert said(drain(engine)[number]) == answer
    assert sum(encoded) == 2


def test_without_images_nothing_is_encoded(model: VisionLanguageModel, encoded: list[int]) -> None:
    inputs = prompt(model, 3, images=0)
    assert Engine(model).score_prompt(inputs) == pytest.approx(whole(model, inputs), abs=1e-4)
    assert encoded == []


@pytest.mark.parametrize("at_once", [1, 3, 256])
def test_logits_in_pieces_are_the_same(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    inputs = prompt(model, 3, images=2)
    expected = scoring.score_continuations(model, inputs, continued(inputs), document_end=2)
    monkeypatch.setattr(scoring, "AT_ONCE", at_once)
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.numel() // out.shape[-1]))
    found = scoring.score_continuations(model, inputs, continued(inputs), document_end=2)
    hook.remove()
    assert max(rows) <= min(at_once, 17)
    for (logprobs, greedy_), (due, due_greedy) in zip(found, expected, strict=True):
        assert logprobs == pytest.approx(due, abs=1e-4)
        assert greedy_ == due_greedy


@pytest.mark.parametrize("tokens", [1, 5, 16, 2048])
def test_a_prompt_in_pieces_is_the_same(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(scoring, "PASS", tokens)
    monkeypatch.setattr(scoring, "AT_ONCE", 3)
    for seed in range(4):
        inputs = prompt(model, seed, images=seed)
        assert scoring.score_prompt(model, inputs) == pytest.approx(whole(model, inputs), abs=1e-4)


def test_memory_that_ends_is_told(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, inputs = Engine(model), prompt(model, 3, images=1)

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Prefill, "extend", full)
    with pytest.raises(OutOfMemory, match=r"while scoring 3 continuation\(s\) .* use smaller images"):
        engine.score(inputs, continued(inputs))
    with pytest.raises(OutOfMemory, match=r"while searching 4 new tokens after \d+ with 2 beams .* use smaller images"):
        engine.generate(inputs, [greedy(4, num_beams=2, min_new_tokens=4)])
    monkeypatch.setattr(type(model), "logits", full)
    with pytest.raises(OutOfMemory, match=r"while scoring \d+ tokens .* use smaller images"):
        engine.score_prompt(inputs)
