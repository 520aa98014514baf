"""Linear layers for inference on CPUs: weights in the order in which oneDNN reads them.

`torch.nn.functional.linear` in 16 bits arranges the weight anew for every product, which costs more than the product where
there are few rows. `pack` arranges each weight once, joins layers that share their input (`layers/linear.py`), and lets
the product apply the activation that follows. Each weight is dropped as soon as it is packed, so there is no second copy.

Operations are torch's own but private, so `can_pack` tries them and compares before anything is packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.errors import OptionError
from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.decoupled import DecoupledLinear
from idefics.model.layers.linear import SharedInput
from idefics.model.layers.mlp import MLP

__all__ = [
    "PackedLinear",
    "borrows_memory",
    "can_pack",
    "check_stays",
    "is_packed",
    "named_weights",
    "pack",
    "packing_pays",
    "unpack",
]

_Model = TypeVar("_Model", bound=nn.Module)

ENOUGH_PARAMETERS = 100_000_000
"""Below this, weights stay in the processor's caches and there is little to win."""

_REMEDY = "load the model with packed=False, or unpack it (idefics.model.layers.packed.unpack)"

# What oneDNN applies to a product on its way out: name, scalars, algorithm.
_FUSED: dict[Callable[[Tensor], Tensor], tuple[str, list[float], str]] = {
    ACTIVATIONS["gelu_pytorch_tanh"]: ("gelu", [], "tanh"),
    ACTIVATIONS["gelu"]: ("gelu", [], "none"),
    ACTIVATIONS["relu"]: ("relu", [], ""),
    ACTIVATIONS["silu"]: ("swish", [], ""),
}
_PLAIN: tuple[str, list[float], str] = ("none", [], "")


def _unchanged(x: Tensor) -> Tensor:
    return x


class PackedLinear(nn.Module):
    """Linear layers of one input as one product, for inference.

    Args:
        layers: one or several, on the CPU, in one dtype, all with biases or all without. They are emptied, and kept as
            what `restore` fills again.
        activation: applied to the product; one of those that can be fused.

    Attributes:
        sizes: output channels of each layer.
        activation: None for none.

    Raises:
        OptionError: when used as only plain layers can be: trained, moved, or saved.
    """

    # Plain attributes: a packed weight has no storage that copying, moving or saving could see.
    _weight: Tensor
    _bias: Tensor | None
    _emptied: list[nn.Module]

    def __init__(self, layers: Sequence[nn.Module], *, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        owned = [list(_weights(layer).values()) for layer in layers]
        biases: list[Tensor] = [layer.get_parameter("bias") for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers)), "layers with and without bias cannot be joined"
        self.sizes = [sum(len(weight) for weight in weights) for weights in owned]
        self.in_features = owned[0][0].shape[1]
        self.activation = activation
        with torch.no_grad():
            rows = [weight for weights in owned for weight in weights]
            self._weight = _ops().reorder(rows[0].detach() if len(rows) == 1 else torch.cat([*rows]))
            self._bias = torch.cat(biases) if biases else None
        self._emptied = list(layers)
        for layer in layers:
            for name, parameter in list(layer.named_parameters()):
                _assign(layer, name, torch.empty_like(parameter, device="meta"))
        self._post = _PLAIN if activation is None else _FUSED[activation]
        self._product = _ops().product

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise OptionError(f"a packed model has no gradients; {_REMEDY}, or compute under torch.no_grad()")
        out: Tensor = self._product(x, self._weight, self._bias, *self._post)
        return out

    def plain(self) -> list[dict[str, Tensor]]:
        """The parameters of each layer as they were, to the bit, by name; made anew."""
        rows = torch.split(self._weight.to_dense(), self.sizes)
        made = []
        for layer, both in zip(self._emptied, rows, strict=True):
            weights = _weights(layer)
            made.append(dict(zip(weights, torch.split(both, [len(weight) for weight in weights.values()]), strict=True)))
        if self._bias is not None:
            for parameters, bias in zip(made, torch.split(self._bias, self.sizes), strict=True):
                parameters["bias"] = bias
        return made

    def restore(self) -> list[nn.Module]:
        """The layers that were packed, filled again; this object must not be used any more."""
        for layer, parameters in zip(self._emptied, self.plain(), strict=True):
            for name, value in parameters.items():
                _assign(layer, name, _own(value))
        del self._weight
        return self._emptied

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        return int(self._weight.nbytes)

    def train(self, mode: bool = True) -> PackedLinear:
        """Refuses to be trained."""
        if mode:
            raise OptionError(f"a packed model cannot be trained; {_REMEDY}")
        super().train(mode)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the packed weight."""
        return self._weight.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        check_stays(self, fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any) -> None:  # noqa: ARG002
        raise OptionError(f"a packed model has no state dict; {_REMEDY}")

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ARG002
        raise OptionError(f"a packed model takes no state dict; {_REMEDY}")

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        raise OptionError(f"a packed model cannot be copied; {_REMEDY}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OptionError(f"a packed model cannot be pickled; {_REMEDY}")

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"in_features={self.in_features}, sizes={self.sizes}, bias={self._bias is not None}"


class _Ops:
    """The private operations, looked up once."""

    def __init__(self) -> None:
        self.product = torch.ops.mkldnn._linear_pointwise.default
        self._reorder = torch.ops.mkldnn._reorder_linear_weight.default

    def reorder(self, weight: Tensor) -> Tensor:
        """A weight (out, in) in oneDNN's order."""
        packed: Tensor = self._reorder(weight.contiguous(), None)
        return packed


@lru_cache(maxsize=1)
def _ops() -> _Ops:
    return _Ops()


@lru_cache(maxsize=8)
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of a dtype on this machine, and computes with them what it should.

    >>> can_pack(torch.int8)
    False
    """
    if dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((37, 70), (37,), (3, 5, 70)))
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-5)
    try:
        with torch.no_grad():
            packed = _ops().reorder(weight)
            if not torch.equal(packed.to_dense(), weight):
                return False
            for activation, (name, scalars, algorithm) in [(_unchanged, _PLAIN), *_FUSED.items()]:
                found = _ops().product(x, packed, bias, name, scalars, algorithm).float()
                expected = activation(F.linear(x.float(), weight.float(), bias.float()))
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
            empty = _ops().product(x[:, :0], packed, bias, *_PLAIN)
    except (RuntimeError, AttributeError, TypeError, AssertionError):  # as torch says that it has no such operation
        return False
    return tuple(empty.shape) == (3, 0, 37)


def packing_pays(model: nn.Module) -> bool:
    """Whether `pack` can be applied, and makes this model faster: it does in bfloat16 on CPUs, from some size on.

    In float32 one row is slower packed than plain, and eight rows are four times as fast (docs/log.md): it can be asked for.
    """
    return _obstacle(model) is None and _dtypes(model) == {torch.bfloat16} and _count(model) >= ENOUGH_PARAMETERS


def is_packed(model: nn.Module) -> bool:
    """Whether `pack` has been applied."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def borrows_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a view of something larger, or of a mapped file."""
    storage = tensor.untyped_storage()
    return storage.nbytes() > tensor.nbytes or not storage.resizable()  # torch resizes only what it has allocated


def pack(model: _Model, *, let_go: Callable[[Tensor], None] = lambda _: None) -> _Model:
    """Packs every linear layer of a model in place, for inference on this CPU; layer by layer, without a second copy.

    Tensors that stay plain but are views of mapped files (norms, embeddings) are copied, so that the files can be let go.
    A head that is tied to the embedding stays plain: it would be a second copy. Nothing that is left requires gradients.

    Args:
        model: to be packed.
        let_go: told each weight that will not be read again.

    Raises:
        OptionError: the model is divided, not on the CPU, of a dtype that cannot be packed, or torch lacks the operations.
    """
    obstacle = _obstacle(model)
    if obstacle is not None:
        raise OptionError(f"this model cannot be packed: {obstacle}; load it with packed=False")
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = {key for key, count in owners.items() if count > 1}
    # In the order of the files, so that each of these is let go soon after its first tensor is packed.
    for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        if isinstance(module, SharedInput) and module.joined is None:
            module.joined = _packed([module.get_submodule(name) for name in module.shared], let_go)
            for name in module.shared:
                setattr(module, name, None)  # not deleted: parameters keep their order when they come back
        if isinstance(module, MLP) and module.act in _FUSED:
            setattr(module, "fc1", _packed([module.fc1], let_go, activation=module.act))  # noqa: B010
            module.act = _unchanged
        for name, child in list(module.named_children()):
            if type(child) in (nn.Linear, DecoupledLinear) and not any(id(weight) in tied for weight in child.parameters()):
                setattr(module, name, _packed([child], let_go))
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in tied:
                _assign(module, name, _own(parameter.detach()))
                let_go(parameter)
            parameter.requires_grad_(False)
    return model.eval()


def _packed(layers: Sequence[Any], let_go: Callable[[Tensor], None], *, activation: Any = None) -> PackedLinear:
    weights = [weight for layer in layers for weight in layer.parameters()]
    made = PackedLinear(layers, activation=activation)
    for weight in weights:
        let_go(weight)
    return made


def unpack(model: _Model) -> _Model:
    """Undoes `pack` in place, layer by layer: the same layers with the same weights, to the bit."""
    for module in list(model.modules()):
        if isinstance(module, SharedInput) and isinstance(module.joined, PackedLinear):
            for name, layer in zip(module.shared, module.joined.restore(), strict=True):
                setattr(module, name, layer)
            module.joined = None
        for name, child in list(module.named_children()):
            if isinstance(child, PackedLinear):
                if isinstance(module, MLP) and child.activation is not None:
                    module.act = child.activation
                setattr(module, name, child.restore()[0])
    return model.requires_grad_(True)


def check_stays(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Refuses what would move a packed model to another device or dtype, before any part of it has moved.

    Args:
        model: packed or not.
        fn: what `nn.Module.to` and its kind would do to every parameter.

    Raises:
        OptionError: it would.
    """
    for dtype in {module.dtype for module in model.modules() if isinstance(module, PackedLinear)}:
        made = fn(torch.empty(1, dtype=dtype))
        if (made.device.type, made.dtype) != ("cpu", dtype):
            raise OptionError(f"a packed model cannot be moved to {made.device} as {made.dtype}; {_REMEDY}")


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, also of a packed model; there, each is made when its turn comes, and should be let go."""
    yield from model.named_parameters()
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            owner, _, attribute = path.rpartition(".")
            names = cast("SharedInput", model.get_submodule(owner)).shared if attribute == "joined" else (attribute,)
            for name, parameters in zip(names, module.plain(), strict=True):
                for kind, value in parameters.items():
                    yield ".".join(filter(None, (owner, name, kind))), value


def _obstacle(model: nn.Module) -> str | None:
    """Why a model cannot be packed, or None."""
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):  # as DTensors have it
        return "it is divided over processes"
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        return f"it is on {', '.join(sorted(devices))}, not whole on the CPU"
    unfit = sorted(str(dtype) for dtype in _dtypes(model) if not can_pack(dtype))
    return f"torch packs no {', '.join(unfit)} here" if unfit else None


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weights(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a linear layer, by name, one below the other."""
    found: dict[str, nn.Parameter] = {"weight": layer.get_parameter("weight")}
    if isinstance(layer, DecoupledLinear) and layer.additional_fc is not None:
        found["additional_fc.weight"] = layer.additional_fc.get_parameter("weight")
    return found


def _own(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if its memory belongs to something else."""
    return tensor.clone() if borrows_memory(tensor) else tensor


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))
