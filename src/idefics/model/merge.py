"""Where text and images meet. What is miscounted here would be fluent and wrong, so it is counted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from idefics.errors import InputError

__all__ = ["Placed", "merge_latents"]


@dataclass(frozen=True, eq=False)
class Placed:
    """Latents, and the tokens that they take the places of: an image token that a model wrote itself is no place.

    Attributes:
        latents_XD: in order of their places.
        places_BT: True at X tokens.
    """

    latents_XD: Tensor
    places_BT: Tensor

    def into(self, embedded_BTD: Tensor) -> Tensor:
        """The embeddings with the latents in their places, a new tensor."""
        return embedded_BTD.masked_scatter(self.places_BT.to(embedded_BTD.device)[..., None], self.latents_XD.to(embedded_BTD))


def merge_latents(embedded_BTD: Tensor, input_ids_BT: Tensor, latents_NLD: Tensor, *, image_token_id: int) -> Tensor:
    """Puts the images' latents, in order, in the places of the image tokens.

    Args:
        embedded_BTD: token embeddings.
        input_ids_BT: the ids they came from.
        latents_NLD: latents of all images, rows of the batch in order.
        image_token_id: the id that marks a place.

    Returns:
        (B, T, D), a new tensor.

    Raises:
        InputError: places and latents differ in number; both are named.
    """
    places_BT = input_ids_BT == image_token_id
    images, latents, _ = latents_NLD.shape
    places = int(places_BT.sum())
    if places != images * latents:
        raise InputError(
            f"the prompts hold {places} image token(s) but {images} image(s) of {latents} latents need {images * latents}; "
            "prompts must be expanded by the same processor, with the same splitting, as the images"
        )
    return embedded_BTD.masked_scatter(places_BT[..., None], latents_NLD.to(embedded_BTD.dtype))
