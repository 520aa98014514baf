"""Between padded inputs, as the reference passes them around, and what the models want: images alone, and who sees which."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.errors import InputError
from idefics.inputs import ModelInputs

__all__ = ["images_among_tokens", "images_apart", "seen_by_mask", "unpad_images", "used_images"]


def images_among_tokens(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pixel_values: Tensor | None = None,
    pixel_attention_mask: Tensor | None = None,
) -> ModelInputs:
    """The inputs of a model whose images stand among the tokens.

    Args:
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T), 0 for padding; None where there is none.
        pixel_values: (B, N, C, H, W), see `unpad_images`; None for text alone.
        pixel_attention_mask: (B, N, H, W).

    Raises:
        InputError: something is no tensor, or shapes do not agree.
    """
    mask = _token_mask(input_ids, attention_mask)
    _tensors(pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask)
    found, counts = ((), ()) if pixel_values is None else unpad_images(pixel_values, pixel_attention_mask)
    return ModelInputs(input_ids_BT=input_ids, attention_mask_BT=mask, images_CHW=found, images_per_row=counts)


def images_apart(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pixel_values: Tensor | None = None,
    image_attention_mask: Tensor | None = None,
    interpolated: bool = False,
) -> tuple[ModelInputs, Tensor | None]:
    """The inputs of a model whose tokens look at images apart from the text.

    Args:
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T), 0 for padding; None where there is none.
        pixel_values: (B, N, C, H, W); None for text alone.
        image_attention_mask: (B, T, N), see `used_images`.
        interpolated: see `ModelInputs`.

    Returns:
        The inputs, and which of the images (B, N) are among them; None where none was given.

    Raises:
        InputError: something is no tensor, shapes do not agree, or a token sees several images.
    """
    mask = _token_mask(input_ids, attention_mask)
    _tensors(pixel_values=pixel_values, image_attention_mask=image_attention_mask)
    if pixel_values is None:
        if image_attention_mask is not None:
            raise InputError("image_attention_mask says who sees which image, and there is none; give pixel_values too")
        return ModelInputs(input_ids_BT=input_ids, attention_mask_BT=mask), None
    seen_BT, used_BN = used_images(pixel_values, image_attention_mask, mask)
    inputs = ModelInputs(
        input_ids_BT=input_ids,
        attention_mask_BT=mask,
        images_CHW=tuple(pixel_values[used_BN]),
        images_per_row=tuple(used_BN.sum(1).tolist()),
        seen_BT=seen_BT,
        interpolated=interpolated,
    )
    return inputs, used_BN


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


def seen_by_mask(image_attention_mask_BTN: Tensor) -> Tensor:
    """What tokens see by an `image_attention_mask`: the inverse of `idefics.processor.image_mask.mask_of`.

    Raises:
        InputError: it is not (B, T, N), or a token sees several images, which no model of this family was trained for.

    >>> seen_by_mask(torch.tensor([[[0, 0], [1, 0], [0, 1]]])).tolist()
    [[-1, 0, 1]]
    """
    if image_attention_mask_BTN.ndim != 3:
        shape = tuple(image_attention_mask_BTN.shape)
        raise InputError(f"image_attention_mask is of shape {shape}; (prompts, tokens, images) is due")
    open_BTN = image_attention_mask_BTN != 0
    count_BT = open_BTN.sum(-1)
    several = (count_BT > 1).nonzero()
    if len(several):
        row, token = several[0].tolist()
        seen = ", ".join(str(image + 1) for image in open_BTN[row, token].nonzero()[:, 0].tolist())
        raise InputError(
            f"image_attention_mask: token {token + 1} of prompt {row + 1} sees {int(count_BT[row, token])} images ({seen}); "
            "a token sees one image at most, the last before it"
        )
    indices_N = torch.arange(open_BTN.shape[-1], device=open_BTN.device)
    return torch.where(count_BT == 1, (open_BTN * indices_N).sum(-1), -1)


def _token_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask of the tokens: all real where none is given."""
    _tensors(input_ids=input_ids, attention_mask=attention_mask)
    if input_ids.ndim != 2:
        raise InputError(f"input_ids must be (batch, tokens), not {tuple(input_ids.shape)}; pass return_tensors='pt'")
    if not len(input_ids) or input_ids.dtype.is_floating_point:
        raise InputError(
            f"input_ids must be whole numbers of one prompt or more, not {tuple(input_ids.shape)} {input_ids.dtype}"
        )
    if attention_mask is None:
        return torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise InputError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
    return (attention_mask != 0).long()  # bool or floats elsewhere


def _tensors(**given: Tensor | None) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            kind = type(value).__name__
            raise InputError(f"{name} is of type {kind}; a torch tensor is due: give the processor return_tensors='pt'")


def _five_dimensions(pixel_values: Tensor) -> None:
    if pixel_values.ndim != 5:
        raise InputError(f"pixel_values must be (batch, images, channels, height, width), not {tuple(pixel_values.shape)}")
