"""The first generation: every block and the whole model equal the reference on the same random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from oracle import Pair, assert_gradients_agree, assert_within_rounding, greedy_pair, pair
from torch.nn import functional as F

from gated import (
    BOS,
    EDGES,
    EOS,
    FAKE,
    IMAGE,
    SIDE,
    block,
    model_inputs,
    padded,
    pictures,
    random_batch,
    reference_inputs,
    seen,
    tiny_config,
    tiny_model,
)  # fmt: skip
from idefics.errors import InputError
from idefics.model.gated_cross_attention import View, route
from idefics.model.logits import positions

TOLERANCE = 1e-4  # fp32 logits; see docs/numerics.md
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "no resampler": {"use_resampler": False},
    "no norms of queries and keys": {"qk_layer_norms": False, "qk_layer_norms_perceiver": False},
    "one gate per channel": {"alpha_type": "vector"},
    "tied": {"tie_word_embeddings": True},
    "tied, nothing added": {"tie_word_embeddings": True, "additional_vocab_size": 0},
    "nothing added, a block before every layer": {"additional_vocab_size": 0, "cross_layer_interval": 1},
}


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def models(request: pytest.FixtureRequest) -> Pair:
    return pair(tiny_config(), seed=1, attention=request.param)


def _additive(sees: torch.Tensor) -> torch.Tensor:
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)


@torch.inference_mode()
def test_tower(models: Pair) -> None:
    images = pictures(5)
    theirs = models.reference.model.vision_model(pixel_values=torch.stack(images))
    tower = models.ours.model.vision_model
    features = tower(images)
    torch.testing.assert_close(features, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tower.pooled(features), theirs.pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norms", [True, False], ids=["norms", "no norms"])
@torch.inference_mode()
def test_resampler(norms: bool) -> None:
    models = pair(tiny_config(qk_layer_norms_perceiver=norms), seed=2)
    context = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
    theirs = models.reference.model.perceiver_resampler(context)
    torch.testing.assert_close(models.ours.model.perceiver_resampler(context), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", ["float", "vector"])
@pytest.mark.parametrize("norms", [True, False], ids=["norms", "no norms"])
@torch.inference_mode()
def test_gated_block(norms: bool, alpha: str) -> None:
    models = pair(tiny_config(qk_layer_norms=norms, alpha_type=alpha), seed=3)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 32, generator=generator)
    latents = torch.randn(2, 3, 5, 24, generator=generator)
    seen_BT = torch.tensor([[-1, -1, 0, 0, 1, 1, 2, 2, -1], [0, 0, 0, -1, 1, 1, 1, 1, 1]])
    sees = (seen_BT[..., None] == torch.arange(3)).repeat_interleave(5, dim=-1)
    theirs = models.reference.model.gated_cross_attn_layers[1](
        hidden,
        None,
        latents.flatten(1, 2),
        image_attention_mask=_additive(sees)[:, None],
        cross_attention_gate=(seen_BT >= 0).float(),
        past_key_values=None,
    )
    ours = models.ours.model.text_model.gated_cross_attn_layers[1]
    keys, values = ours.cross_attn.project(latents.flatten(0, 1))
    flat = torch.where(seen_BT < 0, -1, seen_BT + torch.tensor([[0], [3]]))
    torch.testing.assert_close(ours(hidden, View(keys, values, route(flat, images=6))), theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_decoder_layer(models: Pair) -> None:
    hidden = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    sees = (torch.ones(7, 7).tril().bool() & mask.bool()[:, None]) | torch.eye(7, dtype=torch.bool)
    theirs = models.reference.model.layers[2](hidden, attention_mask=_additive(sees)[:, None], position_ids=positions(mask))
    text = models.ours.model.text_model
    angles, cache = text.begin(hidden, positions_BT=positions(mask), key_mask_BS=mask.bool(), cache=None)
    ours = text.layers[2](hidden, angles, cache)
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=1e-5)


def _assert_logits(models: Pair, rows: Any, images: Any, *, side: str = "left") -> None:
    inputs = reference_inputs(rows, images, side=side)
    real = inputs["attention_mask"].bool()
    theirs = models.reference(**inputs).logits[real]
    assert theirs.abs().max() > 1, "logits too small to tell anything"
    torch.testing.assert_close(models.ours(**inputs).logits[real], theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits(variant: str, attention: str) -> None:
    models = pair(tiny_config(**VARIANTS[variant]), seed=4, attention=attention)
    for seed, side in enumerate(("left", "right")):
        _assert_logits(models, *random_batch(100 + seed, 5), side=side)


@pytest.mark.parametrize("edge", EDGES)
@torch.inference_mode()
def test_logits_where_masks_go_wrong(models: Pair, edge: str) -> None:
    for side in ("left", "right"):
        _assert_logits(models, *EDGES[edge], side=side)


@pytest.mark.parametrize("shift", [-1, 1])
@torch.inference_mode()
def test_a_mask_that_is_off_by_one_is_seen(models: Pair, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import gated

    inputs = reference_inputs(*EDGES["text before the first image"])
    theirs = models.reference(**inputs).logits
    monkeypatch.setattr(gated, "seen", lambda row: (seen(row) * 3)[len(row) + shift :][: len(row)])
    ours = models.ours(**reference_inputs(*EDGES["text before the first image"])).logits
    assert not torch.allclose(ours, theirs, atol=1e-2)


@torch.inference_mode()
def test_the_model_itself_takes_the_same_images(models: Pair) -> None:
    """Without this face: ids, images alone, and which image each token sees."""
    rows, images = random_batch(7, 4)
    inputs = model_inputs(rows, images)
    model, mask = models.ours.model, inputs.attention_mask_BT
    hidden = model(inputs.input_ids_BT, positions_BT=positions(mask), seen=model.see(inputs), key_mask_BS=mask.bool())
    theirs = models.reference(**reference_inputs(rows, images)).logits
    torch.testing.assert_close(model.logits(hidden)[mask.bool()], theirs[mask.bool()], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_bfloat16_is_within_its_rounding() -> None:
    exact, low = pair(tiny_config(), seed=1), pair(tiny_config(), seed=1, dtype=torch.bfloat16)
    inputs = reference_inputs(*random_batch(8, 4))
    assert_within_rounding(exact, low, inputs, inputs["attention_mask"].bool())


@pytest.mark.parametrize("variant", ["as published", "no resampler", "one gate per channel", "tied, nothing added"])
def test_loss_and_gradients(variant: str) -> None:
    """4.40's rule, written out here: 5.23 fails where ids were added, and counts what 4.40 drops."""
    models = pair(tiny_config(**VARIANTS[variant]), seed=5)
    rows = [[BOS, 4, *block(2), 7, 8, *block(1), 9, 10], [BOS, 5, 6], [BOS, 11, *block(1), EOS]]
    inputs = reference_inputs(rows, [pictures(3), [], pictures(1, seed=1)])
    labels, mask = inputs["input_ids"].clone(), inputs["attention_mask"]
    labels[:, -1] = -100
    for row, start in enumerate(mask.argmax(1).tolist()):
        labels[row, start] = -100  # predicted from padding
    counts = mask[:, 1:] != 0
    logits = models.reference(**inputs).logits
    theirs = F.cross_entropy(logits[:, :-1][counts], labels[:, 1:][counts])
    ours = models.ours(**inputs, labels=inputs["input_ids"].index_fill(1, torch.tensor([labels.shape[1] - 1]), -100)).loss
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert_gradients_agree(models, theirs, ours)


@torch.inference_mode()
def test_image_hidden_states(models: Pair) -> None:
    rows, images = EDGES["mixed image counts"]
    inputs = reference_inputs(rows, images)
    found = models.ours(**inputs).image_hidden_states
    expected = models.reference(**inputs).image_hidden_states
    assert found.shape == expected.shape == (4, 3, 5, 24)
    for row, own in enumerate(images):
        torch.testing.assert_close(found[row, : len(own)], expected[row, : len(own)], atol=1e-5, rtol=1e-5)
        assert not found[row, len(own) :].any(), "what nobody sees is not encoded"


@pytest.mark.parametrize("size", [(56, 56), (84, 42), (30, 30), (31, 28), (14, 70)], ids=str)
@torch.inference_mode()
def test_images_of_other_sizes_by_interpolated_positions(models: Pair, size: tuple[int, int]) -> None:
    rows, images = EDGES["mixed image counts"]
    inputs = reference_inputs(rows, images)
    pixels = torch.randn(*inputs["pixel_values"].shape[:3], *size, generator=torch.Generator().manual_seed(3))
    inputs["pixel_values"] = pixels
    theirs = models.reference(**inputs, interpolate_pos_encoding=True)
    ours = models.ours(**inputs, interpolate_pos_encoding=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], atol=TOLERANCE, rtol=0)
    assert (ours.logits[real] - models.ours(**reference_inputs(rows, images)).logits[real]).abs().max() > 0.1
    expected, found = greedy_pair(models, inputs, interpolate_pos_encoding=True, max_new_tokens=4)
    assert found == expected
    with pytest.raises(InputError, match="interpolate_pos_encoding=True"):
        models.ours(**inputs)


@torch.inference_mode()
def test_prompts_with_images_of_several_sizes_share_a_pass() -> None:
    model = tiny_model(seed=1)
    batches = []
    for size in (28, 56):
        inputs = model_inputs([[BOS, *block(2), 5]], [pictures(2)])
        images = tuple(torch.randn(3, size, size, generator=torch.Generator().manual_seed(n)) for n in range(2))
        batches.append(dataclasses.replace(inputs, images_CHW=images, interpolated=True))
    alone = [model.encode_images(inputs.images_CHW) for inputs in batches]
    mixed = model.encode_images([image for pair in zip(*(b.images_CHW for b in batches), strict=True) for image in pair])
    torch.testing.assert_close(mixed, torch.stack(alone, 1).flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_the_prompts_hold_what_is_said_of_them() -> None:
    assert seen([BOS, 5, FAKE, IMAGE, FAKE, 6, EOS, BOS, 7, FAKE, IMAGE]) == [-1, -1, -1, 0, 0, 0, 0, -1, -1, -1, 1]
    rows = [row for seed in range(25) for row in random_batch(seed, 8)[0]]
    assert len({row.count(IMAGE) for row in rows}) == 5
    assert any(EOS in row for row in rows)
    assert padded([[1], [2, 3]])[1].tolist() == [[0, 1], [1, 1]]
    assert tiny_config().vision_config.image_size == SIDE
