"""Which image each token sees: the last one before it, none before the first, none after a document's end.

Two forms of one fact. `seen_BT` holds the index of the image in its row, or -1; the published models take
`image_attention_mask`, one-hot over the row's images (`idefics.inputs.padded` reads it).
Letters: B rows, T tokens, N images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mask_of", "seen_images"]


def seen_images(input_ids_BT: Tensor, *, image_token_id: int, eos_token_id: int | None) -> Tensor:
    """Which image of its row each token sees: the last at or before it, -1 for none.

    After an `eos` a new document begins, whose tokens see no image until its own first; the `eos` itself still sees.
    Images are counted over the whole row. Padding gets what an equal token would: mask it where that matters.

    >>> import torch
    >>> ids = torch.tensor([[1, 5, 7, 5, 7, 5, 2, 5, 7]])
    >>> seen_images(ids, image_token_id=7, eos_token_id=2).tolist()
    [[-1, -1, 0, 0, 1, 1, 1, -1, 2]]
    """
    import torch

    is_image_BT = input_ids_BT == image_token_id
    last_BT = is_image_BT.cumsum(1) - 1
    if eos_token_id is None:
        return last_BT
    is_eos_BT = (input_ids_BT == eos_token_id).long()
    ended_BT = is_eos_BT.cumsum(1) - is_eos_BT  # documents that ended before each token
    places_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    place_BT = torch.where(is_image_BT, places_T, 0).cummax(1).values  # of the last image
    return torch.where(ended_BT > ended_BT.gather(1, place_BT), -1, last_BT)


def mask_of(seen_BT: Tensor, images: int) -> Tensor:
    """The `image_attention_mask` (B, T, N) int64 of what tokens see.

    Args:
        seen_BT: from `seen_images`.
        images: N, at least what any row has.

    Raises:
        InputError: a token sees an image that the mask has no column for.

    >>> import torch
    >>> mask_of(torch.tensor([[-1, 0, 1]]), 2).tolist()
    [[[0, 0], [1, 0], [0, 1]]]
    """
    import torch

    beyond = (seen_BT >= images).nonzero()
    if len(beyond):
        row, token = beyond[0].tolist()
        raise InputError(
            f"prompt {row + 1}: token {token + 1} sees image {int(seen_BT[row, token]) + 1}, "
            f"but the mask holds {images} image(s) per prompt"
        )
    return (seen_BT[..., None] == torch.arange(images, device=seen_BT.device)).long()
