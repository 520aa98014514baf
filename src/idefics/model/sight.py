"""Where text and images meet: what tokens draw on, as a decoder wants it.

What is miscounted here would be fluent and wrong, so `VisionLanguageModel.check` counts, row by row, before anything is
computed. Letters: B rows, T tokens, X tokens that are places, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Placed", "Sight"]


class Sight:
    """What tokens draw on, from `VisionLanguageModel.sight`, for `forward` of the same family. How is the family's affair."""


@dataclass(frozen=True, eq=False)
class Placed(Sight):
    """Latents, and the tokens that they take the places of: an image token that a model wrote itself is no place.

    Attributes:
        latents_XD: in order of their places.
        places_BT: True at X tokens.
    """

    latents_XD: Tensor
    places_BT: Tensor

    def __post_init__(self) -> None:
        places = int(self.places_BT.sum())
        assert places == len(self.latents_XD), f"{places} places for {len(self.latents_XD)} latents"

    def into(self, embedded_BTD: Tensor) -> Tensor:
        """The embeddings with the latents in their places, a new tensor."""
        return embedded_BTD.masked_scatter(self.places_BT.to(embedded_BTD.device)[..., None], self.latents_XD.to(embedded_BTD))
