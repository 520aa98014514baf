"""Between padded inputs, as the reference passes them around, and what the models want: images alone, and who sees which."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.errors import InputError
from idefics.processor.image_mask import seen_by_mask

__all__ = ["token_inputs", "unpad_images", "used_images"]


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
    _five_dimensions(pixel_values)
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


def used_images(pixel_values: Tensor, image_attention_mask: Tensor | None, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which image each token sees. What padding tokens see does not count, and an image that nobody sees is padding.

    Args:
        pixel_values: (B, N, C, H, W).
        image_attention_mask: (B, T, N), 1 where a token sees an image.
        attention_mask: (B, T), 0 for padding tokens.

    Returns:
        Of each token, which of its row's images that anybody sees it sees, or -1 (B, T); and which images those are,
        bool (B, N).

    Raises:
        InputError: there is no mask or no image, shapes differ, or a token sees several images.

    >>> mask = torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    >>> seen, used = used_images(torch.zeros(1, 3, 3, 2, 2), mask, torch.ones(1, 3))
    >>> seen.tolist(), used.tolist()
    ([[-1, 0, 1]], [[False, True, True]])
    """
    _five_dimensions(pixel_values)
    if not pixel_values.shape[1]:
        raise InputError(f"pixel_values {tuple(pixel_values.shape)} hold no images; leave them and image_attention_mask out")
    if image_attention_mask is None:
        raise InputError("pixel_values need image_attention_mask, which says what each token sees; the processor makes both")
    due = (*attention_mask.shape, pixel_values.shape[1])
    if len(pixel_values) != len(attention_mask) or image_attention_mask.shape != due:
        raise InputError(
            f"image_attention_mask is {tuple(image_attention_mask.shape)}, attention_mask {tuple(attention_mask.shape)}, "
            f"pixel_values {tuple(pixel_values.shape)}: they must agree in batch, tokens and images"
        )
    sees_BTN = image_attention_mask.bool() & attention_mask.bool()[..., None]
    column_BT = seen_by_mask(sees_BTN)
    used_BN = sees_BTN.any(1)
    place_BN = used_BN.long().cumsum(1) - 1
    return place_BN.gather(1, column_BT.clamp(min=0)).masked_fill(column_BT < 0, -1), used_BN


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


def _five_dimensions(pixel_values: Tensor) -> None:
    if pixel_values.ndim != 5:
        raise InputError(f"pixel_values must be (batch, images, channels, height, width), not {tuple(pixel_values.shape)}")
