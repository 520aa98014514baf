"""What computes in the place of linear layers, and knows the way back to them.

A purpose (packing, a scheme of fewer bits) is a class of these. It refuses what the layers could and it cannot, in the one
sentence of its `Arrangement`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from idefics.errors import OptionError
from idefics.linears.borrowed import owned
from idefics.model.arrangement import Immovable, check_stays
from idefics.model.layers.decoupled import DecoupledLinear
from idefics.model.layers.linear import Split

__all__ = ["StandIn", "assign", "matrices"]


class StandIn(Immovable):
    """Computes what linear layers of one input would, for inference.

    Args:
        layers: one or several. They are kept as what `restore` fills again; `empty` takes their weights away.

    Attributes:
        sizes: output channels of each layer.
        in_features: input channels.
        layers: those it stands in for; empty where their weights were taken away.

    Raises:
        OptionError: when used as only plain layers can be: trained, moved, or saved.
    """

    # Not registered: copying, moving and saving do not see them.
    layers: list[nn.Module]

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        found = [list(matrices(layer).values()) for layer in layers]
        first = found[0][0]
        self.sizes = [sum(len(matrix) for matrix in of_layer) for of_layer in found]
        self.in_features = first.shape[1]
        self.layers = list(layers)

    def empty(self) -> None:
        """Takes the layers' weights away from them: they are read already."""
        for layer in self.layers:
            for name, parameter in list(layer.named_parameters()):
                assign(layer, name, torch.empty_like(parameter, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise OptionError(self._refusal("computed with gradients") + ", or compute under torch.no_grad()")
        return self._product(x)

    @abstractmethod
    def _product(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out), without gradients."""

    @abstractmethod
    def weights(self) -> list[dict[str, Tensor]]:
        """The parameters of each layer, by name, as they were or as near as it keeps them; to be read only."""

    def restore(self) -> list[nn.Module]:
        """The layers, filled again; this object must not be used any more."""
        for layer, parameters in zip(self.layers, self.weights(), strict=True):
            for name, value in parameters.items():
                assign(layer, name, owned(value))
        return self.layers

    @classmethod
    def cuts(cls, split: Split) -> Mapping[str, int | None]:
        """How its stored tensors are divided between processes.

        Args:
            split: how the site is.

        Returns:
            The dimension along which each of its buffers is cut, by name; None for those that stay whole.

        Raises:
            OptionError: they cannot be.
        """
        raise OptionError(cls.arrangement.refusal(f"divided by {split}"))

    def _refusal(self, what: str) -> str:
        return self.arrangement.refusal(what)

    def train(self, mode: bool = True) -> Self:
        """Refuses to be trained."""
        if mode:
            raise OptionError(self._refusal("trained"))
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        check_stays(self, fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any) -> None:  # noqa: ARG002
        raise OptionError(self._refusal("made a state dict"))

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ARG002
        raise OptionError(self._refusal("given a state dict"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise OptionError(self._refusal("copied"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OptionError(self._refusal("pickled"))

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"in_features={self.in_features}, sizes={self.sizes}"


def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Puts a value in the place of a parameter (`"weight"`, `"additional_fc.weight"`); it requires no gradient."""
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


def matrices(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices (out, in) of a linear layer, by name, one below the other."""
    found: dict[str, nn.Parameter] = {"weight": layer.get_parameter("weight")}
    if isinstance(layer, DecoupledLinear) and layer.additional_fc is not None:
        found["additional_fc.weight"] = layer.additional_fc.get_parameter("weight")
    return found
