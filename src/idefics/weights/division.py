"""What one of several processes keeps of a model that they compute together, as loading asks for it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from idefics.model.base import VisionLanguageModel

__all__ = ["Division", "Whole"]


class Division(Protocol):
    """What stays here of every tensor of a model, parameter or buffer."""

    def divide(self, model: VisionLanguageModel) -> None:
        """Divides a model that has no storage yet; names and shapes stay those of the whole."""

    def share(self, held: Tensor, stored: Tensor) -> Tensor:
        """What stays here of a stored tensor: a view."""

    def filled(self, held: Tensor, share: Tensor) -> Tensor:
        """The parameter or buffer of which this process holds that share."""


class Whole:
    """Everything stays here."""

    def divide(self, model: VisionLanguageModel) -> None:
        """Leaves the model as it is."""

    def share(self, held: Tensor, stored: Tensor) -> Tensor:  # noqa: ARG002
        """All of it."""
        return stored

    def filled(self, held: Tensor, share: Tensor) -> Tensor:
        """A plain parameter or buffer."""
        return nn.Parameter(share) if isinstance(held, nn.Parameter) else share
