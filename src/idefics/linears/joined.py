"""Linear layers of one input as one product, on any device: fewer and larger products, nothing held twice.

What is joined only infers. `packing.py` decides what is joined; `packed.py` arranges weights for CPUs besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.linears.borrowed import LetGo, keep
from idefics.linears.stand_in import StandIn, matrices
from idefics.model.arrangement import Arrangement

__all__ = ["PACKED", "JoinedLinear"]

PACKED = Arrangement(
    kind="packed",
    cannot=frozenset({"trained", "saved", "copied", "divided"}),
    remedy="load the model with packed=False, or unpack it (idefics.linears.packing.unpack)",
)


class JoinedLinear(StandIn):
    """Linear layers of one input as one product, for inference.

    Args:
        layers: one or several, on one device, in one dtype, all with biases or all without. They are emptied.
        let_go: told each matrix and bias that will not be read again.

    Attributes:
        dtype: of the joined weight.
        device: of the joined weight.
    """

    arrangement = PACKED

    # Plain attributes: a joined weight is nothing that copying, moving or saving could see.
    _weight: Tensor
    _bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Module], *, let_go: LetGo = keep) -> None:
        super().__init__(layers)
        first = next(iter(matrices(layers[0]).values()))
        self.dtype, self.device = first.dtype, first.device
        biases: list[Tensor] = [layer.get_parameter("bias") for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers)), "layers with and without bias cannot be joined"
        self._let_go = let_go
        with torch.no_grad():
            self._take([matrix.detach() for layer in layers for matrix in matrices(layer).values()])
            self._bias = torch.cat(biases) if biases else None
        for bias in biases:
            let_go(bias)
        self.empty()

    def _take(self, rows: list[Tensor]) -> None:
        """Takes over the layers' matrices (out, in), one below the other."""
        self._weight = torch.cat(rows)
        for matrix in rows:
            self._let_go(matrix)

    def _matrices(self, sizes: list[int]) -> Sequence[Tensor]:
        """Those matrices as they were, of so many rows each."""
        return torch.split(self._weight, sizes)

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def weights(self) -> list[dict[str, Tensor]]:
        """The parameters of each layer as they were, to the bit."""
        named = [matrices(layer) for layer in self.layers]
        rows = iter(self._matrices([len(matrix) for of_layer in named for matrix in of_layer.values()]))
        made = [{name: next(rows) for name in of_layer} for of_layer in named]
        if self._bias is not None:
            for parameters, bias in zip(made, torch.split(self._bias, self.sizes), strict=True):
                parameters["bias"] = bias
        return made

    def restore(self) -> list[nn.Module]:
        """As `StandIn`, to the bit."""
        layers = super().restore()
        del self._weight
        return layers

    @property
    def places(self) -> set[tuple[torch.dtype, torch.device]]:
        """Where the joined weight is."""
        return {(self.dtype, self.device)}

    @property
    def nbytes(self) -> int:
        """Bytes of the joined weight."""
        return sum(self.sizes) * self.in_features * self.dtype.itemsize

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{super().extra_repr()}, bias={self._bias is not None}"
