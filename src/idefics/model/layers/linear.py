"""Linear layers that share their input: one product where packing has joined them, one each where it has not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Joined", "SharedInput"]


class Joined(Protocol):
    """Several linear layers as one.

    Attributes:
        sizes: output channels of each.
    """

    sizes: list[int]

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (..., size) to (..., sum of `sizes`)."""
        ...


class SharedInput(nn.Module):
    """A block some of whose linear layers map the same input.

    Attributes:
        shared: the names of those layers.
        joined: what `layers/packed.py` has made of them, which are None then; None while they are themselves.
    """

    shared: ClassVar[tuple[str, ...]]
    joined: Joined | None

    def __init__(self) -> None:
        super().__init__()
        self.joined = None

    def projections(self, x: Tensor) -> Sequence[Tensor]:
        """What each of the layers makes of (..., size), in the order of `shared`; views of one tensor if joined."""
        if self.joined is not None:
            return torch.split(self.joined(x), self.joined.sizes, dim=-1)
        return [getattr(self, name)(x) for name in self.shared]
