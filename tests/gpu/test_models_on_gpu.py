"""Whole models on a GPU against float32 on the CPU."""

from __future__ import annotations

import pytest
import torch

import gated
from idefics.inputs import ModelInputs
from idefics.linears.packing import pack, unpack
from idefics.model.base import VisionLanguageModel
from idefics.weights.families import family_of
from idefics.weights.init import initialize
from middle import middle_idefics1, middle_idefics2

TOLERANCES = {torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Length of the difference over length of the logits. The CPU in the same dtype is as far from float32 (docs/numerics.md)."""

SIDES = ((14 * 33, 14 * 20 + 5), (14 * 7, 14 * 7), (14 * 20, 14 * 33))
CPU = torch.device("cpu")


def model_of(family: str, dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    config = middle_idefics2() if family == "idefics2" else middle_idefics1()
    model = family_of(config).model(config)
    initialize(model, seed=1, std=0.05)
    return model.to(dtype).eval()


def prompts(family: str) -> ModelInputs:
    """Two rows with images of three sizes among words, padded at the left."""
    generator = torch.Generator().manual_seed(0)
    words = [torch.randint(3, 400, (n,), generator=generator).tolist() for n in (300, 9, 4)]
    if family == "idefics":
        pictures = [torch.randn(3, 224, 224, generator=generator) for _ in range(3)]
        image, fake = 513, 512
        rows = [[1, *words[0], fake, image, fake, *words[1], fake, image, fake, *words[2]], [1, fake, image, fake, *words[1]]]
        looks = [[*(-1 for _ in words[0]), -1, -1, 0, 0, *(0 for _ in words[1]), 0, 1, 1, *(1 for _ in words[2])]]
        looks.append([-1, -1, 0, 0, *(0 for _ in words[1])])
        ids, mask = gated.padded(rows)
        return ModelInputs(
            input_ids_BT=ids,
            attention_mask_BT=mask,
            images_CHW=tuple(pictures),
            images_per_row=(2, 1),
            seen_BT=gated.padded(looks, fill=-1)[0],
        )
    block = [9, *[500] * 16, 9]
    ids, mask = gated.padded([[1, *words[0], *block, *words[1], *block, *words[2]], [1, *block, *words[1]]])
    images = tuple(torch.randn(3, height, width, generator=generator) for height, width in SIDES)
    return ModelInputs(input_ids_BT=ids, attention_mask_BT=mask, images_CHW=images, images_per_row=(2, 1))


@torch.inference_mode()
def logits(model: VisionLanguageModel, inputs: ModelInputs) -> torch.Tensor:
    """Of real tokens (P, V), float32 on the CPU."""
    inputs = inputs.to(model.device)
    mask = inputs.attention_mask_BT.bool()
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    hidden = model(inputs.input_ids_BT, positions_BT=places, seen=model.see(inputs), key_mask_BS=mask)
    return model.logits(hidden)[mask].float().cpu()


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["idefics2", "idefics"])
def test_joined_layers(device: torch.device, family: str, dtype: torch.dtype) -> None:
    """Queries, keys and values in one product, gate and up in another: the same logits, and the same weights again."""
    inputs = prompts(family)
    model = model_of(family, dtype).to(device)
    expected = logits(model, inputs)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = logits(pack(model, reorder=False), inputs)
    assert off(found, expected) < TOLERANCES[dtype]
    assert all(torch.equal(weight, before[name]) for name, weight in unpack(model).named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["idefics2", "idefics"])
def test_logits(device: torch.device, family: str, dtype: torch.dtype) -> None:
    if family == "idefics" and dtype == torch.float16:
        pytest.skip("the first generation overflows in float16, and is refused in it")
    inputs = prompts(family)
    expected = logits(model_of(family), inputs)
    found = logits(model_of(family, dtype).to(device), inputs)
    assert torch.isfinite(found).all()
    assert off(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_together_are_images_alone(device: torch.device, dtype: torch.dtype) -> None:
    model = model_of("idefics2", dtype).to(device)
    images = [image.to(device) for image in prompts("idefics2").images_CHW]
    with torch.inference_mode():
        together = model.encode_images(images)
        alone = torch.cat([model.encode_images([image]) for image in images])
    assert off(together.float(), alone.float()) < TOLERANCES[dtype]
    other = [images[0], images[1] + 1, images[2]]
    with torch.inference_mode():
        changed = model.encode_images(other)
    assert torch.equal(changed[0], together[0]), "an image sees another"
    assert torch.equal(changed[2], together[2]), "an image sees another"
    assert not torch.equal(changed[1], together[1])
