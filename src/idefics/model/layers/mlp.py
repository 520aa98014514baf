"""The two feed-forward blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.linear import SharedInput

__all__ = ["MLP", "GatedMLP"]


class MLP(nn.Module):
    """`fc2(act(fc1(x)))`, biases on: the vision towers' block."""

    def __init__(self, size: int, inner: int, *, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)
        self.act = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., size) to (..., size)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class GatedMLP(SharedInput):
    """`down(act(gate(x)) * up(x))` without biases (arXiv 2002.05202); may change the size, as a projection does."""

    shared = ("gate_proj", "up_proj")

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
