"""The two feed-forward blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.linear import Block, Linears, SharedInput

__all__ = ["MLP", "GatedMLP"]


class MLP(Block):
    """`fc2(act(fc1(x)))`, biases on: the vision towers' block.

    Attributes:
        activated: what stands in for `act(fc1(x))`; None while these are themselves.
    """

    linears = (Linears(names=("fc1",), slot="activated", activation="act"), Linears(names=("fc2",)))
    activated: Callable[[Tensor], Tensor] | None

    def __init__(self, size: int, inner: int, *, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)
        self.act = ACTIVATIONS[activation]
        self.activated = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., size) to (..., size)."""
        inner = self.act(self.fc1(x)) if self.activated is None else self.activated(x)
        out: Tensor = self.fc2(inner)
        return out


class GatedMLP(SharedInput):
    """`down(act(gate(x)) * up(x))` without biases (arXiv 2002.05202); may change the size, as a projection does."""

    shared = Linears(names=("gate_proj", "up_proj"), slot="joined", split="columns")
    linears = (shared, Linears(names=("down_proj",), split="rows"))

    def __init__(self, size: int, inner: int, out: int, *, activation: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, out, bias=False)
        self.act = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., size) to (..., out)."""
        gate, up = self.projections(x)
        inner = self.act(gate)
        # This is the widest moment of every pass: a fourth tensor of the inner size is made only where gradients need it.
        inner = inner * up if torch.is_grad_enabled() else inner.mul_(up)
        del gate, up
        out: Tensor = self.down_proj(inner)
        return out
