"""Cutting images out of the padding that the reference passes around."""

from __future__ import annotations

import pytest
import torch

from idefics.errors import InputError
from idefics.inputs.padded import images_among_tokens, images_apart, unpad_images
from idefics.processor.image import pad_images


def test_what_was_padded_is_cut_out_again() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [[(5, 9), (7, 3)], [], [(4, 4)]]
    rows = [[torch.randn(3, h, w, generator=generator).numpy() for h, w in row] for row in sizes]
    pixels, mask = map(torch.from_numpy, pad_images(rows))
    assert pixels.shape == (3, 2, 3, 7, 9)
    images, counts = unpad_images(pixels, mask)
    assert counts == (2, 0, 1)
    for image, original in zip(images, [image for row in rows for image in row], strict=True):
        assert torch.equal(image, torch.from_numpy(original))


def test_without_a_mask_images_are_whole() -> None:
    pixels = torch.randn(2, 1, 3, 4, 6)
    images, counts = unpad_images(pixels, None)
    assert counts == (1, 1)
    assert images[0].shape == (3, 4, 6)


@pytest.mark.parametrize("broken", ["hole", "corner", "empty", "not from the top"])
def test_a_mask_that_is_no_rectangle(broken: str) -> None:
    pixels, mask = torch.ones(1, 2, 3, 6, 6), torch.ones(1, 2, 6, 6, dtype=torch.int64)
    if broken == "hole":
        mask[0, 1, 2, 3] = 0
    elif broken == "corner":
        mask[0, 1, 5, 5] = 0
    elif broken == "empty":
        mask[0, 1] = 0
    else:
        mask[0, 1, :2] = 0
    with pytest.raises(InputError, match="pixel_attention_mask of image 2 in row 1 is not a rectangle"):
        unpad_images(pixels, mask)


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        ((3, 6, 6), None, r"pixel_values must be \(batch, images, channels, height, width\), not \(3, 6, 6\)"),
        ((1, 2, 3, 6, 6), (1, 2, 6, 5), r"pixel_attention_mask is \(1, 2, 6, 5\), pixel_values \(1, 2, 3, 6, 6\)"),
        ((1, 2, 3, 6, 6), (1, 1, 6, 6), "must agree in batch, images, height and width"),
        ((1, 2, 3, 6, 6), (6, 6), "must agree"),
    ],
)
def test_shapes_that_do_not_agree(pixels: tuple[int, ...], mask: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpad_images(torch.ones(pixels), None if mask is None else torch.ones(mask))


def test_tokens_and_their_mask() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(images_among_tokens(ids).attention_mask_BT, torch.ones_like(ids))
    mask = torch.tensor([[0, 1], [1, 1]])
    assert torch.equal(images_among_tokens(ids, mask).attention_mask_BT, mask)
    with pytest.raises(InputError, match="return_tensors='pt'"):
        images_among_tokens(ids[0])
    with pytest.raises(InputError, match=r"attention_mask is \(1, 2\), input_ids \(2, 2\)"):
        images_among_tokens(ids, mask[:1])


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "pixel_values", "image_attention_mask"])
def test_lists_and_arrays_are_told_how_to_become_tensors(name: str) -> None:
    given = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 1, 3, 2, 2)}
    for value in ([[1, 2]], torch.zeros(1, 2).numpy()):
        with pytest.raises(InputError, match=f"{name} is of type {type(value).__name__}; .*return_tensors='pt'"):
            images_apart(**{**given, name: value})  # type: ignore[arg-type]
