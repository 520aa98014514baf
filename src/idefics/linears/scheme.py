"""Fewer bits for the weights of linear layers: a scheme is one file with a `StandIn` that holds its tensors as buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from idefics.model.base import VisionLanguageModel

__all__ = ["Scheme"]


class Scheme(Protocol):
    """How a checkpoint stores weights that are no plain matrices."""

    def replace(self, model: VisionLanguageModel, stored: Mapping[str, Tensor]) -> None:
        """Puts stand-ins in the place of the layers that are stored so, and says in `model.arrangements` what the model is.

        Which layers those are is told by the tensors that are there, not by a list that a config may hold.

        Args:
            model: without storage.
            stored: every tensor of the files under our name (a module's path, then what the files call the tensor), on the
                meta device: shapes and dtypes.
        """
        ...
