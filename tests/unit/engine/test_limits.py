"""How large a cache is made of what is free: computing has what it needs, on small cards and large ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import gated
from fakes import tiny_config, tiny_model
from idefics.config.presets import preset
from idefics.engine import limits as limits_module
from idefics.engine.limits import LEAST_SHARE, MARGIN, Limits, cache_blocks, cache_room, reserve, token_bytes
from idefics.errors import OptionError, OutOfMemory
from idefics.model.base import VisionLanguageModel
from idefics.model.peaks import VISION_BYTES
from idefics.plan import make_plan

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
EIGHT = preset("idefics2-8b")
CARDS = {"24 GB": 24 * 10**9, "48 GiB": 48 * 2**30, "80 GB": 80 * 10**9, "139 GiB": 139 * 2**30}
CONTEXT = 10**9  # of the framework, and of what else a card shows


def free_on(card: str, *, weights: int) -> int:
    return CARDS[card] - weights - CONTEXT


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", ["idefics2-8b", "idefics-9b", "idefics2-nano", "tiny-random-idefics2", "tiny-random-idefics"])
def test_what_is_planned_for_a_request_fits_beside_the_cache(name: str, card: str) -> None:
    config = preset(name)
    side = config.square_side or config.vision_config.image_size
    half = make_plan(config, [(side, side)] * 4, split=False if name == "idefics2-8b" else None).memory[1]
    free = free_on(card, weights=half.weights)
    room = cache_room(config, Limits(), device=CUDA, free=free, width=2)
    assert room >= half.kv_cache
    assert room + max(half.vision, half.prompt) + Limits().image_bytes + MARGIN <= free
    assert room <= 0.85 * free


def test_a_card_of_24_gb_has_room_for_images_and_a_large_one_loses_nothing() -> None:
    free = free_on("24 GB", weights=16_805_537_248)
    kept = free - cache_room(EIGHT, Limits(), device=CUDA, free=free, width=2)
    assert free * 0.15 < VISION_BYTES + Limits().image_bytes < kept < 0.45 * free
    for card in ("80 GB", "139 GiB"):
        free = free_on(card, weights=16_805_537_248)
        assert cache_room(EIGHT, Limits(), device=CUDA, free=free, width=2) == int(0.85 * free)


def test_what_is_reserved_grows_with_what_is_asked_for() -> None:
    free = 6 * 10**9
    usual = reserve(EIGHT, Limits(), free=free, width=2)
    assert usual.total == max(usual.vision, usual.tokens + usual.logits) + usual.images + usual.margin
    assert reserve(EIGHT, Limits(tokens=8192), free=free, width=2).tokens > 2 * usual.tokens
    assert reserve(EIGHT, Limits(rows=128), free=free, width=2).logits == 2 * usual.logits
    assert reserve(EIGHT, Limits(image_bytes=0), free=free, width=2).images == usual.images - 2**29 + 64 * 64 * 4096 * 2
    assert reserve(EIGHT, Limits(), free=free, width=4).tokens > 1.4 * usual.tokens
    assert reserve(preset("idefics-80b"), Limits(), free=free, width=2).images > 5 * 10**9, "64 rows look at 64 images"
    # A tower whose single image is larger than a group.
    large = dataclasses.replace(EIGHT, vision_config=dataclasses.replace(EIGHT.vision_config, image_size=1960))
    assert reserve(large, Limits(), free=free, width=2).vision > VISION_BYTES


def test_little_memory_still_holds_short_requests() -> None:
    free = 10**9
    assert reserve(EIGHT, Limits(), free=free, width=2).total > free
    assert cache_room(EIGHT, Limits(), device=CUDA, free=free, width=2) == int(free * LEAST_SHARE)


def test_a_cpu_gives_half_of_what_is_free() -> None:
    assert cache_room(EIGHT, Limits(), device=CPU, free=6 * 10**9, width=2) == 3 * 10**9


@pytest.mark.parametrize("model", [tiny_model(tiny_config()), gated.tiny_model()], ids=["idefics2", "idefics"])
def test_blocks_of_what_is_free(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    each, few = token_bytes(model)[CPU], Limits(rows=2, tokens=8, block=4)
    monkeypatch.setattr(limits_module, "free_bytes", lambda _: 2 * 12 * each)
    assert cache_blocks(model, few) == 3
    monkeypatch.setattr(limits_module, "free_bytes", lambda _: 139 * 2**30)
    assert cache_blocks(model, few) == 2 * -(-model.config.text_config.max_position_embeddings // 4), "more than can be used"
    monkeypatch.setattr(limits_module, "free_bytes", lambda _: None)
    assert cache_blocks(model, few) == 2 * -(-model.config.text_config.max_position_embeddings // 4)
    monkeypatch.setattr(limits_module, "free_bytes", lambda _: each)
    with pytest.raises(
        OutOfMemory, match=r"are free beside the weights: .* do not hold one block of 4 tokens .* smaller dtype"
    ):
        cache_blocks(model, few)
    with pytest.raises(OptionError, match=r"do not hold one block of 4 tokens .*; raise cache_bytes"):
        cache_blocks(model, dataclasses.replace(few, cache_bytes=each))
