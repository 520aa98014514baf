"""Linear layers of one input as one product, on any device: fewer and larger products, nothing held twice but by `folded`.

What is joined only infers. `layers/packed.py` decides what is joined, and arranges weights for CPUs besides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.errors import OptionError
from idefics.model.layers.decoupled import DecoupledLinear

__all__ = ["JoinedLinear", "LetGo", "assign", "borrows_memory", "check_stays", "folded", "keep", "owned"]

LetGo: TypeAlias = Callable[[Tensor], None]
"""Told a tensor that will not be read again."""

_REMEDY = "load the model with packed=False, or unpack it (idefics.model.layers.packed.unpack)"


def keep(tensor: Tensor) -> None:
    """Lets go of nothing."""


class JoinedLinear(nn.Module):
    """Linear layers of one input as one product, for inference.

    Args:
        layers: one or several, on one device, in one dtype, all with biases or all without. They are emptied, and kept as
            what `restore` fills again.
        let_go: told each matrix and bias that will not be read again.

    Attributes:
        sizes: output channels of each layer.
        in_features: input channels.
        dtype: of the joined weight.
        device: of the joined weight.

    Raises:
        OptionError: when used as only plain layers can be: trained, moved, or saved.
    """

    # Plain attributes: a joined weight is nothing that copying, moving or saving could see.
    _weight: Tensor
    _bias: Tensor | None
    _emptied: list[nn.Module]
    _folded: list[JoinedLinear]

    def __init__(self, layers: Sequence[nn.Module], *, let_go: LetGo = keep) -> None:
        super().__init__()
        parts = [list(_weights(layer).values()) for layer in layers]
        biases: list[Tensor] = [layer.get_parameter("bias") for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers)), "layers with and without bias cannot be joined"
        self.sizes = [sum(len(weight) for weight in weights) for weights in parts]
        first = parts[0][0]
        self.in_features, self.dtype, self.device = first.shape[1], first.dtype, first.device
        self._let_go = let_go
        with torch.no_grad():
            self._take([weight.detach() for weights in parts for weight in weights])
            self._bias = torch.cat(biases) if biases else None
        for bias in biases:
            let_go(bias)
        self._emptied = list(layers)
        self._folded = []
        for layer in layers:
            for name, parameter in list(layer.named_parameters()):
                assign(layer, name, torch.empty_like(parameter, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise OptionError(f"a packed model has no gradients; {_REMEDY}, or compute under torch.no_grad()")
        return self._product(x)

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

    def plain(self) -> list[dict[str, Tensor]]:
        """The parameters of each layer as they were, to the bit, by name; to be read only."""
        named = [_weights(layer) for layer in self._emptied]
        matrices = iter(self._matrices([len(weight) for weights in named for weight in weights.values()]))
        made = [{name: next(matrices) for name in weights} for weights in named]
        if self._bias is not None:
            for parameters, bias in zip(made, torch.split(self._bias, self.sizes), strict=True):
                parameters["bias"] = bias
        return made

    def restore(self) -> list[nn.Module]:
        """The layers that were packed, filled again; this object must not be used any more."""
        for layer, parameters in zip(self._emptied, self.plain(), strict=True):
            for name, value in parameters.items():
                assign(layer, name, owned(value))
        del self._weight
        return self._emptied

    @property
    def nbytes(self) -> int:
        """Bytes of the joined weight."""
        return sum(self.sizes) * self.in_features * self.dtype.itemsize

    def train(self, mode: bool = True) -> Self:
        """Refuses to be trained."""
        if mode:
            raise OptionError(f"a packed model cannot be trained; {_REMEDY}")
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        check_stays(self, fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any) -> None:  # noqa: ARG002
        raise OptionError(f"a packed model has no state dict; {_REMEDY}")

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ARG002
        raise OptionError(f"a packed model takes no state dict; {_REMEDY}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise OptionError(f"a packed model cannot be copied; {_REMEDY}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OptionError(f"a packed model cannot be pickled; {_REMEDY}")

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"in_features={self.in_features}, sizes={self.sizes}, bias={self._bias is not None}"


def folded(joined: Sequence[JoinedLinear], scales_D: Sequence[Tensor]) -> JoinedLinear:
    """Joined layers, each of which would scale the channels of one input first, as one product of the unscaled input.

    The scales cannot be taken out of it again to the bit, so it is a further weight. It is made when first asked for and kept
    by the first of the layers: what undoes the packing drops it, and nothing counts or names it.

    Args:
        joined: without biases; always the same ones together.
        scales_D: of each, (in,); multiplied in float32, and rounded once.
    """
    keeper = joined[0]._folded
    if not keeper:
        layers: list[nn.Module] = []
        for one, scale_D in zip(joined, scales_D, strict=True):
            for empty, parameters in zip(one._emptied, one.plain(), strict=True):
                layers.append(copy.deepcopy(empty))
                for name, weight in parameters.items():
                    assign(layers[-1], name, (weight.float() * scale_D.detach().float()).to(weight.dtype))
        keeper.append(type(joined[0])(layers))
    return keeper[0]


def check_stays(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Refuses what would move a packed model to another device or dtype, before any part of it has moved.

    Args:
        model: packed or not.
        fn: what `nn.Module.to` and its kind would do to every parameter.

    Raises:
        OptionError: it would.
    """
    for dtype, device in {(module.dtype, module.device) for module in model.modules() if isinstance(module, JoinedLinear)}:
        made = fn(torch.empty(1, dtype=dtype, device=device))
        if (made.device, made.dtype) != (device, dtype):
            raise OptionError(f"a packed model cannot be moved to {made.device} as {made.dtype}; {_REMEDY}")


def borrows_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a view of something larger, or of a mapped file."""
    storage = tensor.untyped_storage()
    return storage.nbytes() > tensor.nbytes or not storage.resizable()  # torch resizes only what it has allocated


def owned(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if its memory belongs to something else."""
    return tensor.clone() if borrows_memory(tensor) else tensor


def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Puts a value in the place of a parameter (`"weight"`, `"additional_fc.weight"`); it requires no gradient."""
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


def _weights(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a linear layer, by name, one below the other."""
    found: dict[str, nn.Parameter] = {"weight": layer.get_parameter("weight")}
    if isinstance(layer, DecoupledLinear) and layer.additional_fc is not None:
        found["additional_fc.weight"] = layer.additional_fc.get_parameter("weight")
    return found
