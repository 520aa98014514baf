"""Linear layers as blocks declare them, so that whoever arranges a model from outside need not know its blocks.

What arranges models (`linears/`, `parallel/`) reads these declarations and nothing else; a block works with its own layers, or
with one product that stands in for several of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Block", "Joined", "Linears", "ScaledInput", "SharedInput", "Split"]

Split = Literal["heads", "columns", "rows", "vocabulary"]
"""How a layer is divided between processes that compute one model: by outputs, in whole heads, singly, or those of a
vocabulary, which are gathered again; or by inputs, whose products are summed."""


@dataclass(frozen=True, kw_only=True)
class Linears:
    """Linear layers of a block that map one input.

    Attributes:
        names: the block's attributes that hold them.
        slot: the attribute where one product of them all may stand in for them, which are None then; None where there is but
            one layer, and what stands in for it takes its place.
        activation: the attribute that holds what follows them, which a product in the slot applies by itself.
        split: how they are divided between processes; None if they stay whole.
    """

    names: tuple[str, ...]
    slot: str | None = None
    activation: str | None = None
    split: Split | None = None


class Joined(Protocol):
    """Several linear layers as one.

    Attributes:
        sizes: output channels of each.
    """

    sizes: list[int]

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (..., size) to (..., sum of `sizes`)."""
        ...


class Block(nn.Module):
    """A module that owns linear layers.

    Attributes:
        linears: all of them.
    """

    linears: ClassVar[tuple[Linears, ...]]


class SharedInput(Block):
    """A block some of whose linear layers map the same input.

    Attributes:
        shared: those layers; `joined` is their slot.
        joined: what stands in for them; None while they are themselves.
    """

    shared: ClassVar[Linears]
    joined: Joined | None

    def __init__(self) -> None:
        super().__init__()
        self.joined = None

    def projections(self, x: Tensor) -> Sequence[Tensor]:
        """What each of the layers makes of (..., size), in the order of `shared`; views of one tensor if joined."""
        if self.joined is not None:
            return torch.split(self.joined(x), self.joined.sizes, dim=-1)
        return [getattr(self, name)(x) for name in self.shared.names]


class ScaledInput(nn.Module):
    """A module whose blocks map one input, the channels of which each scales by factors of its own first.

    Attributes:
        contexts: one product of the unscaled input for all of them; None while they are themselves.
    """

    contexts: Joined | None

    def __init__(self) -> None:
        super().__init__()
        self.contexts = None

    def scaled(self) -> Sequence[tuple[SharedInput, Tensor]]:
        """The blocks, whose `shared` layers those are, and the factors (size,) of each."""
        raise NotImplementedError
