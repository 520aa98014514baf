"""Prompts for tiny models of both families, what the plain path answers, and what an engine said."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

import gated
from fakes import LATENTS, PATCH, tiny_config, tiny_model
from idefics.engine.engine import Engine
from idefics.engine.prefill import Prefill
from idefics.engine.request import Event, Token
from idefics.engine.sampling import Choice, Sampler, choose
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

IMAGE = tiny_config().image_token_id


def model_of(family: str) -> VisionLanguageModel:
    """A tiny model that says different things about different prompts."""
    return gated.tiny_model(seed=1) if family == "idefics" else tiny_model(tiny_config(), seed=1, std=0.3)


def prompt(model: VisionLanguageModel, seed: int, *, images: int | None = None, shared: int = 0) -> ModelInputs:
    """Words and images in any order.

    Args:
        model: whose prompt it is.
        seed: of everything that is not shared.
        images: how many; None chooses 0 to 3.
        shared: seed of a beginning that prompts of one such seed have in common; 0 for none.
    """
    rng = random.Random(seed)
    count = rng.randint(0, 3) if images is None else images
    crossed = isinstance(model, gated.Idefics1)
    ids, pictures = [1], []
    parts = [("word", rng.randint(1, 6)) for _ in range(2)] + [("image", i) for i in range(count)]
    rng.shuffle(parts)
    if shared:
        source = random.Random(-shared)
        ids += [source.randint(10, 60) for _ in range(9)]
        parts.insert(0, ("shared", shared))
    for kind, size in parts:
        if kind == "word":
            ids += [rng.randint(10, 60) for _ in range(size)]
            continue
        generator = torch.Generator().manual_seed(seed * 10 + size if kind == "image" else -size % 1000)
        side = (gated.SIDE, gated.SIDE) if crossed else (PATCH * rng.randint(4, 7), PATCH * rng.randint(4, 7))
        if kind == "shared" and not crossed:
            side = (PATCH * 5, PATCH * 4)
        pictures.append(torch.randn(3, *side, generator=generator))
        ids += [gated.FAKE, gated.IMAGE, gated.FAKE] if crossed else [9, *([IMAGE] * LATENTS), 9]
    if crossed:
        return gated.model_inputs([ids], [pictures])
    ids_1T = torch.tensor([ids])
    return ModelInputs(
        input_ids_BT=ids_1T,
        attention_mask_BT=torch.ones_like(ids_1T),
        images_CHW=tuple(pictures),
        images_per_row=(len(pictures),),
    )


def chosen(sampler: Sampler, logits_V: torch.Tensor, answer: Sequence[int] = ()) -> Choice:
    """One answer's next token."""
    (choice,) = choose([(sampler, logits_V, answer)])
    if isinstance(choice, Exception):
        raise choice
    return choice


@torch.inference_mode()
def plain(model: VisionLanguageModel, inputs: ModelInputs, tokens: int) -> list[int]:
    """The likeliest tokens on the plain path: one prompt, a cache of its own, one token after the other."""
    prefill = Prefill(model, inputs, rows=[0], rooms=[tokens])
    ids: list[int] = []
    logits_1V = prefill.logits_RV
    while True:
        ids.append(int(logits_1V[0].argmax()))
        if len(ids) == tokens:
            return ids
        logits_1V = prefill.step(torch.tensor([ids[-1:]], device=model.device))


def drain(engine: Engine, *, found: dict[int, list[Event]] | None = None) -> dict[int, list[Event]]:
    found = defaultdict(list) if found is None else found
    while engine.busy:
        for event in engine.step():
            found[event.row].append(event)
    return found


def said(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def assert_nothing_held(engine: Engine) -> None:
    pool = engine.scheduler.pool
    assert pool.free == pool.blocks
    assert not engine.scheduler.waiting
    assert not engine.scheduler.running


def greedy(tokens: int = 8, **options: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=tokens, **options)
