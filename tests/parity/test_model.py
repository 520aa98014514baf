"""Every block and the whole model equal the reference on the same random weights."""

from __future__ import annotations

import pytest
import torch
from oracle import (
    BOS,
    FAKE,
    VOCAB,
    Pair,
    assert_gradients_agree,
    assert_within_rounding,
    batch,
    image_block,
    pair,
    random_prompt,
    tiny_config,
)  # fmt: skip

from idefics.linears.packed import can_pack
from idefics.linears.packing import pack
from idefics.model.logits import positions
from idefics.model.vision_encoder import patchify

TOLERANCE = 1e-4  # fp32 logits; see docs/numerics.md


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def models(request: pytest.FixtureRequest) -> Pair:
    return pair(tiny_config(sliding_window=None), seed=1, attention=request.param)


def _images(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, h, w, generator=generator) for h, w in sizes]


SIZES = [(14, 14), (29, 70), (100, 15), (57, 57), (14, 200), (98, 42)]


@torch.inference_mode()
def test_vision_tower_and_connector(models: Pair) -> None:
    images = _images(*SIZES)
    inputs = batch([[BOS]], [images])
    mask = inputs["pixel_attention_mask"][0]
    patches = mask.unfold(1, 14, 14).unfold(2, 14, 14).sum((-1, -2)) == 196
    theirs = models.reference.model.vision_model(pixel_values=inputs["pixel_values"][0], patch_attention_mask=patches)
    pieces, grids = zip(*(patchify(image, patch=14) for image in images), strict=True)
    ours = models.ours.model.vision_model(torch.cat(pieces), grids)
    torch.testing.assert_close(ours, theirs.last_hidden_state[patches.flatten(1)], atol=1e-5, rtol=1e-5)

    context = models.reference.model.connector.modality_projection(theirs.last_hidden_state)
    projected = models.ours.model.connector.modality_projection(ours)
    torch.testing.assert_close(projected, context[patches.flatten(1)], atol=1e-5, rtol=1e-5)

    latents = models.reference.model.connector(theirs.last_hidden_state, attention_mask=patches.flatten(1))
    connected = models.ours.model.connector(ours, [h * w for h, w in grids])
    torch.testing.assert_close(connected, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
@torch.inference_mode()
def test_decoder(window: int | None) -> None:
    models = pair(tiny_config(sliding_window=window), seed=5)
    ids = torch.randint(3, FAKE, (3, 23), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    theirs = models.reference.model.text_model(input_ids=ids, attention_mask=mask, position_ids=positions(mask))
    embedded = models.ours.model.text_model.embed_tokens(ids)
    ours = models.ours.model.text_model(embedded, positions_BT=positions(mask), key_mask_BS=mask.bool(), cache=None)
    torch.testing.assert_close(ours[mask.bool()], theirs.last_hidden_state[mask.bool()], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_window_is_not_ignored() -> None:
    """The mutation: the same weights without the window give other states."""
    ids = torch.randint(3, FAKE, (1, 23), generator=torch.Generator().manual_seed(0))
    states = []
    for window in (7, None):
        model = pair(tiny_config(sliding_window=window), seed=5).ours
        states.append(model(ids).logits)
    assert not torch.allclose(states[0], states[1], atol=1e-2)
    assert torch.allclose(states[0][:, :7], states[1][:, :7], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_logits(models: Pair, side: str) -> None:
    for seed in range(4):
        generator = torch.Generator().manual_seed(100 + seed)
        prompts = [random_prompt(generator) for _ in range(5)]
        inputs = batch([ids for ids, _ in prompts], [images for _, images in prompts], side=side)
        mask = inputs["attention_mask"]
        theirs = models.reference(**inputs, position_ids=positions(mask)).logits
        ours = models.ours(**inputs).logits
        assert theirs[mask.bool()].abs().max() > 1, "logits too small to tell anything"
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_text_only(models: Pair) -> None:
    inputs = batch([[BOS, 5, 6, 7, 8], [BOS, 9]], [[], []])
    mask = inputs["attention_mask"].bool()
    theirs = models.reference(**inputs, position_ids=positions(inputs["attention_mask"])).logits
    torch.testing.assert_close(models.ours(**inputs).logits[mask], theirs[mask], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_low_precision_is_within_its_rounding(dtype: torch.dtype) -> None:
    exact = pair(tiny_config(sliding_window=None), seed=1)
    low = pair(tiny_config(sliding_window=None), seed=1, dtype=dtype)
    ids = [BOS, 4, *image_block(2), 7, 8, 9]
    inputs = batch([ids], [_images((57, 71), (28, 42))])
    assert_within_rounding(exact, low, inputs)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this torch cannot pack here")
@torch.inference_mode()
def test_packed_logits() -> None:
    exact, packed = (pair(tiny_config(sliding_window=None), seed=1) for _ in range(2))
    low = pair(tiny_config(sliding_window=None), seed=1, dtype=torch.bfloat16)
    with torch.inference_mode(mode=False):
        pack(packed.ours.model)
        pack(low.ours.model)
    inputs = batch([[BOS, 4, *image_block(2), 7, 8, 9]], [_images((57, 71), (28, 42))])
    logits = (model(**inputs).logits for model in (packed.ours, exact.reference))
    torch.testing.assert_close(*logits, atol=TOLERANCE, rtol=0)
    assert_within_rounding(exact, low, inputs)


def test_loss_and_gradients(models: Pair) -> None:
    """-100, padding and image tokens are not counted, whichever the reference's version ignores."""
    ids = [BOS, 4, *image_block(1), 7, 8, 9, 10]
    inputs = batch([ids, [BOS, 3, 4]], [_images((57, 30)), []])
    labels = inputs["input_ids"].clone()
    labels[:, :2] = -100
    ignored = labels.clone()
    ignored[(labels == models.ours.config.image_token_id) | (inputs["attention_mask"] == 0)] = -100
    ignored[1, inputs["attention_mask"][1].argmax()] = -100  # predicted from padding
    theirs = models.reference(**inputs, labels=ignored, position_ids=positions(inputs["attention_mask"]))
    ours = models.ours(**inputs, labels=labels)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=1e-5)
    assert_gradients_agree(models, theirs.loss, ours.loss)


@torch.inference_mode()
def test_image_hidden_states_keep_the_form_of_4_40(models: Pair) -> None:
    out = models.ours(**batch([[BOS, *image_block(2), 5]], [_images((30, 30), (14, 44))]))
    assert out.image_hidden_states is not None
    assert out.image_hidden_states.shape == (2, 4, 32)
    again = models.ours(**batch([[BOS, *image_block(2), 5]], [[]]), image_hidden_states=out.image_hidden_states)
    torch.testing.assert_close(again.logits, out.logits)
    assert out.logits.shape[-1] == VOCAB
