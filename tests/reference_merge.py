"""Latents among tokens, one by one: what `Idefics2.sources`, `sight` and `Placed.into` must amount to, written apart."""

from __future__ import annotations

from torch import Tensor


def merged(embedded_BTD: Tensor, ids_BT: Tensor, mask_BT: Tensor, latents_NLD: Tensor, *, image_token_id: int) -> Tensor:
    """The embeddings, in which each image token that is no padding is the next latent, in reading order."""
    out_BTD = embedded_BTD.clone()
    latents = iter([latent_D for image_LD in latents_NLD for latent_D in image_LD])
    for row, ids in enumerate(ids_BT.tolist()):
        for place, token in enumerate(ids):
            if token == image_token_id and mask_BT[row, place]:
                out_BTD[row, place] = next(latents).to(out_BTD.dtype)
    return out_BTD
