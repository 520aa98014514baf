"""Between padded pixels, as the reference passes them around, and images in their own sizes, as the model wants them."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.errors import InputError

__all__ = ["token_inputs", "unpad_images"]


def unpad_images(pixel_values: Tensor, pixel_attention_mask: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Cuts every real image out of its padding.

    Args:
        pixel_values: (B, N, C, H, W), padded with zeros at the right and bottom; an image of zeros only is none.
        pixel_attention_mask: (B, N, H, W), 1 where a pixel is real; None where all are.

    Returns:
        Images (C, h, w) of all rows in order, and how many each row has.

    Raises:
        InputError: shapes differ, or a mask is not a rectangle from the top left corner.
    """
    if pixel_values.ndim != 5:
        raise InputError(f"pixel_values must be (batch, images, channels, height, width), not {tuple(pixel_values.shape)}")
    if pixel_attention_mask is not None and pixel_attention_mask.shape != (*pixel_values.shape[:2], *pixel_values.shape[3:]):
        raise InputError(
            f"pixel_attention_mask is {tuple(pixel_attention_mask.shape)}, pixel_values {tuple(pixel_values.shape)}: "
            "they must agree in batch, images, height and width"
        )
    images: list[Tensor] = []
    counts = []
    real_BN = (pixel_values != 0).flatten(2).any(-1)
    for b, row in enumerate(real_BN.tolist()):
        for n, real in enumerate(row):
            if not real:
                continue
            image = pixel_values[b, n]
            if pixel_attention_mask is not None:
                mask = pixel_attention_mask[b, n].bool()
                h, w = int(mask.any(1).sum()), int(mask.any(0).sum())
                if not h or int(mask.sum()) != h * w or not bool(mask[:h, :w].all()):
                    raise InputError(
                        f"pixel_attention_mask of image {n + 1} in row {b + 1} is not a rectangle of ones from the top left"
                    )
                image = image[:, :h, :w]
            images.append(image)
        counts.append(sum(row))
    return tuple(images), tuple(counts)


def token_inputs(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask of the tokens: all real where none is given.

    Raises:
        InputError: ids are not (B, T), or the mask's shape differs.
    """
    if input_ids.ndim != 2:
        raise InputError(f"input_ids must be (batch, tokens), not {tuple(input_ids.shape)}; pass return_tensors='pt'")
    if attention_mask is None:
        return torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise InputError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
    return attention_mask
