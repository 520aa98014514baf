"""The one list of a model's linear layers, as its blocks declare them, with the ways to replace them and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from idefics.linears.stand_in import StandIn
from idefics.model.layers.decoupled import DecoupledLinear
from idefics.model.layers.linear import Block, Linears

__all__ = ["Site", "named_weights", "restore", "sites"]

KINDS = (nn.Linear, DecoupledLinear)
"""What a plain layer is, exactly: a subclass computes something else."""


@dataclass(frozen=True, eq=False)
class Site:
    """Linear layers of one block that map one input.

    Attributes:
        path: of the block; empty for the module that was asked.
        owner: the block.
        linears: what it declares: names, slot, activation, split.
        tied: whether another module owns their weights as well.
    """

    path: str
    owner: Block
    linears: Linears
    tied: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """Of each layer."""
        return tuple(f"{self.path}.{name}".lstrip(".") for name in self.linears.names)

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters of all layers that are themselves."""
        held = zip(self.paths, (getattr(self.owner, name) for name in self.linears.names), strict=True)
        return [f"{path}.{name}" for path, layer in held if layer is not None for name, _ in layer.named_parameters()]

    @property
    def layers(self) -> list[nn.Module]:
        """What is in the layers' places; fewer than names where one product stands in for all."""
        return [layer for layer in (getattr(self.owner, name) for name in self.linears.names) if layer is not None]

    @property
    def is_plain(self) -> bool:
        """Whether nothing has been done to any of the layers."""
        return len(self.layers) == len(self.linears.names) and all(type(layer) in KINDS for layer in self.layers)

    @property
    def activation(self) -> Callable[[Tensor], Tensor] | None:
        """What follows the layers, and what stands in for them applies if it is in the slot; None for nothing."""
        if self.linears.activation is None:
            return None
        found: Callable[[Tensor], Tensor] = getattr(self.owner, self.linears.activation)
        return found

    def replace(self, stand_in: StandIn) -> None:
        """Puts one product for all layers into the slot; it must apply what follows them."""
        assert self.linears.slot is not None
        assert self.is_plain
        setattr(self.owner, self.linears.slot, stand_in)
        for name in self.linears.names:
            setattr(self.owner, name, None)  # not deleted: parameters keep their order when they come back

    def replace_each(self, make: Callable[[nn.Module], StandIn]) -> None:
        """Puts something in the place of every plain layer; what follows them stays where it is."""
        for name, layer in zip(self.linears.names, self.layers, strict=True):
            setattr(self.owner, name, make(layer))

    def stand_ins(self) -> list[tuple[tuple[str, ...], StandIn]]:
        """What stands in for the layers, each with the paths of those that it is."""
        slot = self.linears.slot and getattr(self.owner, self.linears.slot)
        if isinstance(slot, StandIn):
            return [(self.paths, slot)]
        found = zip(self.paths, (getattr(self.owner, name) for name in self.linears.names), strict=True)
        return [((path,), layer) for path, layer in found if isinstance(layer, StandIn)]

    def restore(self) -> None:
        """Brings the layers back."""
        for paths, stand_in in self.stand_ins():
            for path, layer in zip(paths, stand_in.restore(), strict=True):
                setattr(self.owner, path.rpartition(".")[2], layer)
        if self.linears.slot is not None:
            setattr(self.owner, self.linears.slot, None)


def sites(model: nn.Module) -> list[Site]:
    """All linear layers of a module, in the order of its blocks.

    Raises:
        TypeError: it has a linear layer that no block declares.
    """
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found = []
    for path, module in model.named_modules():
        for linears in module.linears if isinstance(module, Block) else ():
            layers = [getattr(module, name) for name in linears.names]
            held = [parameter for layer in layers if layer is not None for parameter in layer.parameters()]
            found.append(Site(path, module, linears, any(owners[id(parameter)] > 1 for parameter in held)))
    declared = {path for site in found for path in site.paths}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and declared.isdisjoint(_ways(path)):
            raise TypeError(f"no block declares the linear layer {path!r}")
    return found


def _ways(path: str) -> Iterator[str]:
    """A path and those above it: what is inside of a declared layer (added ids, an adapter) is a part of it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, whatever stands in for its layer.

    There, each is made when its turn comes, and should be let go.
    """
    yield from model.named_parameters()
    for site in sites(model):
        for paths, stand_in in site.stand_ins():
            for path, parameters in zip(paths, stand_in.weights(), strict=True):
                for name, value in parameters.items():
                    yield f"{path}.{name}", value


def restore(model: nn.Module) -> None:
    """Brings back every linear layer of a module that something stands in for."""
    for site in sites(model):
        site.restore()
