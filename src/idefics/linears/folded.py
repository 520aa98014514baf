"""Joined layers, each of which would scale the channels of one input first, as one product of the unscaled input."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from idefics.linears.joined import JoinedLinear
from idefics.linears.stand_in import assign

__all__ = ["Folded"]


class Folded:
    """Made when first called. It is no module: nothing counts, names, moves or saves it.

    The scales cannot be taken out again to the bit, so its weight is a further one, and the layers keep theirs.

    Args:
        joined: without biases.
        scales_D: of each, (in,); multiplied in float32, and rounded once.

    Attributes:
        sizes: output channels of each layer.
    """

    def __init__(self, joined: Sequence[JoinedLinear], scales_D: Sequence[Tensor]) -> None:
        self.sizes = [size for one in joined for size in one.sizes]
        self._joined = list(joined)
        self._scales_D = list(scales_D)
        self._product: JoinedLinear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., sum of `sizes`)."""
        if self._product is None:
            self._product = self._made()
        out: Tensor = self._product(x)
        return out

    def _made(self) -> JoinedLinear:
        layers: list[nn.Module] = []
        for one, scale_D in zip(self._joined, self._scales_D, strict=True):
            for layer, parameters in zip(one.layers, one.weights(), strict=True):
                layers.append(copy.deepcopy(layer))
                for name, weight in parameters.items():
                    assign(layers[-1], name, (weight.float() * scale_D.detach().float()).to(weight.dtype))
        return type(self._joined[0])(layers)
