"""Scores of continuations equal a forward pass over the whole text, with the processor's own idea of who sees what."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.engine import scoring
from idefics.errors import InputError
from idefics.weights.create import create_checkpoint
from idefics.weights.init import initialize

PROMPTS = ("<image>What color is it?", "<image>It is red.</s>", "<image>One.</s>And", "<image>One.</s>And<image>")
CONTINUATIONS = (" red", " red</s>", " red</s> and more", "</s> a b</s> c d")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Idefics:
    found = idefics.load(create_checkpoint("tiny-random-idefics", tmp_path_factory.mktemp("scored") / "tiny"))
    initialize(found.model, seed=1, std=0.2)
    return found


@torch.inference_mode()
def whole(loaded: Idefics, prompt: str, continuation: str, images: list[Image.Image]) -> float:
    """The continuation's log-probability, by one pass over all tokens."""
    before = loaded.processor.inputs([prompt], [images]).input_ids_BT[0].tolist()
    inputs = loaded.processor.inputs([prompt + continuation], [images])
    ids_T = inputs.input_ids_BT[0]
    shared = next((i for i, (a, b) in enumerate(zip(before, ids_T.tolist(), strict=False)) if a != b), len(before))
    positions = torch.arange(len(ids_T))[None]
    logprobs = loaded.model.logits(loaded.model(ids_T[None], positions_BT=positions, seen=loaded.model.see(inputs)))[0]
    return float(logprobs.log_softmax(-1)[:-1].gather(1, ids_T[1:, None])[shared - 1 :].sum())


def _differences(loaded: Idefics) -> list[float]:
    found = []
    for prompt in PROMPTS:
        images = [Image.effect_noise((40, 40), 90).convert("RGB") for _ in range(prompt.count("<image>"))]
        scores = loaded.score(prompt, CONTINUATIONS, images, raw=True)
        found += [abs(s.logprob - whole(loaded, prompt, c, images)) for s, c in zip(scores, CONTINUATIONS, strict=True)]
    return found


def test_the_end_of_a_document_is_the_end_of_its_images(loaded: Idefics) -> None:
    assert max(_differences(loaded)) < 1e-3


def test_a_second_document_that_sees_the_first_ones_image_is_noticed(loaded: Idefics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_documents", lambda ids, _: [ids] if ids else [])
    assert max(_differences(loaded)) > 1e-2


def test_images_belong_to_the_prompt(loaded: Idefics) -> None:
    with pytest.raises(InputError, match="images belong to the prompt"):
        loaded.score("What?", [" a<image>"])


def test_a_prompt_whose_images_are_missing_is_not_scored(loaded: Idefics) -> None:
    inputs = loaded.processor.inputs(["<image>What?"], [[Image.new("RGB", (40, 40))]])
    blind = dataclasses.replace(inputs, images_CHW=(), images_per_row=(), seen_BT=None)
    with pytest.raises(InputError, match="no token sees an image"):
        scoring.score_continuations(loaded.model, blind, [[*inputs.input_ids_BT[0].tolist(), 7]])
