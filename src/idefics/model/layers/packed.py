"""A model's linear layers arranged for inference on the device where it is.

`torch.nn.functional.linear` in 16 bits arranges the weight anew for every product, which costs more than the product where
there are few rows. On a CPU each weight is arranged once, in oneDNN's order, layers that share their input are joined
(`layers/linear.py`), and the product applies the activation that follows. On a GPU layers are joined only (`layers/joined.py`).

`pack` makes a model ready for that. The arranging itself is done a part of the model at a time, when a part is first used or
`finish_packing` asks for it (`layers/waiting.py`); each weight is dropped as soon as it is done, so there is no second copy
(but see `folded`, which is small).

oneDNN's operations are torch's own but private, so `can_pack` tries them and compares before anything is packed. Where the
processor has no products of 16 bits, weights keep their order and are widened (`layers/widened.py`) instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.errors import OptionError
from idefics.machine.arithmetic import multiplies
from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.decoupled import DecoupledLinear
from idefics.model.layers.joined import JoinedLinear, LetGo, assign, borrows_memory, keep, owned
from idefics.model.layers.linear import SharedInput
from idefics.model.layers.mlp import MLP
from idefics.model.layers.waiting import Part, Scratch
from idefics.model.layers.widened import wide_linear

__all__ = [
    "PackedLinear",
    "can_pack",
    "finish_packing",
    "is_packed",
    "named_weights",
    "pack",
    "packing_pays",
    "unpack",
]

_Model = TypeVar("_Model", bound=nn.Module)

ENOUGH_PARAMETERS = 100_000_000
"""Of a float32 model on a CPU. Below this its weights stay in the processor's caches, where a plain product of one row is
faster; in 16 bits a packed one always is (docs/log/cpu.md)."""

FEW_ROWS = 4
"""oneDNN reads weights from memory fastest for four to six rows, so there are never fewer (docs/log/cpu.md)."""

LARGE_WEIGHT = 2**21
"""Bytes from which a weight is taken to come from memory; what lies in a cache is read fast enough for one row."""

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


class PackedLinear(JoinedLinear):
    """Joined layers whose weight lies in oneDNN's order, with the activation that follows them.

    The weight is arranged at the first product; up to then the layers' own weights wait, in mapped files if they lie there.

    Args:
        layers: as `JoinedLinear`, on the CPU.
        activation: applied to the product; one of those that can be fused.
        part: what is arranged together with this; None for nothing.
        let_go: as `JoinedLinear`.

    Attributes:
        activation: None for none.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        part: Part | None = None,
        let_go: LetGo = keep,
    ) -> None:
        super().__init__(layers, let_go=let_go)
        self.activation = activation
        self._ops = _ops(self.dtype)
        self._fewest = FEW_ROWS if self._ops.few_are_slow and self.nbytes >= LARGE_WEIGHT else 1
        self._part = Part() if part is None else part
        self._part.add(self)

    def _take(self, rows: list[Tensor]) -> None:
        self._weight = torch.empty(0, dtype=self.dtype)
        self._waiting: list[Tensor] | None = rows

    def _matrices(self, sizes: list[int]) -> Sequence[Tensor]:
        waiting = self._waiting  # read once: another thread may arrange it
        return torch.split(self._weight.to_dense(), sizes) if waiting is None else waiting

    @property
    def missing(self) -> int:
        """Bytes of memory that arranging will take and not give back: those that lie in files."""
        return sum(matrix.nbytes for matrix in self._waiting or () if borrows_memory(matrix))

    def finish(self) -> None:
        """Arranges the weight if it still waits, and with it the part that it belongs to.

        Raises:
            RuntimeError: the memory ends, as torch says it; to be tried again when there is some.
        """
        if self._waiting is not None:
            self._part.arrange()

    def arrange(self, scratch: Scratch) -> None:
        """Arranges the weight if it still waits; for its part only, which holds other threads off.

        Args:
            scratch: where several matrices are put together.
        """
        waiting = self._waiting
        if waiting is None:
            return
        self._weight = _ops(self.dtype).reorder(scratch.joined(waiting))
        self._waiting = None  # last: other threads go on when they see it
        for matrix in waiting:
            self._let_go(matrix)

    def restore(self) -> list[nn.Module]:
        """As `JoinedLinear`; what still waits is copied out of its file, which is let go."""
        borrowed = [matrix for matrix in self._waiting or () if borrows_memory(matrix)]
        layers = super().restore()
        self._waiting = None
        for matrix in borrowed:
            self._let_go(matrix)
        return layers

    def _product(self, x: Tensor) -> Tensor:
        if self._waiting is not None:
            self.finish()
        if self._fewest == 1 or not 0 < (rows := x.shape[:-1].numel()) < self._fewest:
            out: Tensor = self._ops.product(x, self._weight, self._bias, self.activation)
            return out
        padded = F.pad(x.reshape(rows, -1), (0, 0, 0, self._fewest - rows))
        out = self._ops.product(padded, self._weight, self._bias, self.activation)
        return out[:rows].view(*x.shape[:-1], -1)


class _Ops(Protocol):
    """How weights are arranged, and multiplied once they are.

    Attributes:
        few_are_slow: whether weights from memory are read faster for a few rows than for one.
    """

    few_are_slow: bool

    def reorder(self, weight: Tensor) -> Tensor:
        """A weight (out, in) arranged, in memory of its own; `to_dense` brings it back to the bit."""
        ...

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, post: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Maps (..., in) to (..., out) by an arranged weight, and applies what follows before the result is rounded."""
        ...


class _OneDNN:
    """The private operations, looked up once."""

    few_are_slow = True

    def __init__(self) -> None:
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._reorder = torch.ops.mkldnn._reorder_linear_weight.default

    def reorder(self, weight: Tensor) -> Tensor:
        packed: Tensor = self._reorder(weight.contiguous(), None)
        return packed

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, post: Callable[[Tensor], Tensor] | None) -> Tensor:
        out: Tensor = self._product(x, weight, bias, *(_PLAIN if post is None else _FUSED[post]))
        return out


class _Widened:
    """Weights as they are, multiplied in float32."""

    few_are_slow = False

    def reorder(self, weight: Tensor) -> Tensor:
        return weight.clone(memory_format=torch.contiguous_format)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, post: Callable[[Tensor], Tensor] | None) -> Tensor:
        return wide_linear(x, weight, bias, activation=post)


@lru_cache(maxsize=8)
def _ops(dtype: torch.dtype) -> _Ops:
    return _OneDNN() if multiplies(dtype) else _Widened()


@lru_cache(maxsize=8)
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of a dtype on this machine, and computes with them what it should.

    >>> can_pack(torch.int8)
    False
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    if multiplies(dtype) and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((37, 70), (37,), (3, 5, 70)))
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-5)
    try:
        with torch.no_grad():
            ops = _ops(dtype)
            packed = ops.reorder(weight)
            if not torch.equal(packed.to_dense(), weight):
                return False
            for activation in (None, *_FUSED):
                found = ops.product(x, packed, bias, activation).float()
                expected = F.linear(x.float(), weight.float(), bias.float())
                expected = expected if activation is None else activation(expected)
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
            empty = ops.product(x[:, :0], packed, bias, None)
    except (RuntimeError, AttributeError, TypeError, AssertionError):  # as torch says that it has no such operation
        return False
    return tuple(empty.shape) == (3, 0, 37)


def packing_pays(model: nn.Module) -> bool:
    """Whether `pack` can be applied where the model is, and should: but for small models in float32 on a CPU."""
    on_cpu = _devices(model) == {"cpu"}
    small = on_cpu and torch.float32 in _dtypes(model) and _count(model) < ENOUGH_PARAMETERS
    return not small and _obstacle(model, reorder=on_cpu) is None


def is_packed(model: nn.Module) -> bool:
    """Whether `pack` has been applied."""
    return any(isinstance(module, JoinedLinear) for module in model.modules())


def pack(model: _Model, *, reorder: bool | None = None, let_go: LetGo = keep) -> _Model:
    """Packs the linear layers of a model in place, for inference where it is; layer by layer, without a second copy.

    What is to be reordered waits until a layer of the same part, which is a child of the model, is first used; see
    `finish_packing`. Up to then it stays where it is: files that it lies in must stay as they are, too.

    Tensors that stay plain but are views of mapped files (norms, embeddings) are copied, so that the files can be let go.
    A head that is tied to the embedding stays plain: it would be a second copy. Nothing that is left requires gradients.

    Args:
        model: to be packed.
        reorder: bring every weight into oneDNN's order, too, which takes a CPU; None does so on one. Otherwise layers that
            share their input are joined, and the rest stays plain.
        let_go: told each weight that will not be read again.

    Raises:
        OptionError: the model is divided, not whole on one kind of device, or, to be reordered, of a dtype that cannot be,
            or torch lacks the operations.
    """
    reorder = _devices(model) == {"cpu"} if reorder is None else reorder
    obstacle = _obstacle(model, reorder=reorder)
    if obstacle is not None:
        raise OptionError(f"this model cannot be packed: {obstacle}; load it with packed=False")
    parts: defaultdict[str, Part] = defaultdict(Part)
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = {key for key, count in owners.items() if count > 1}
    # In the order of the files, so that each of these is let go soon after its first tensor is packed.
    for path, module in [(path, module) for path, module in model.named_modules() if not isinstance(module, nn.Linear)]:
        top = path.partition(".")[0]
        if isinstance(module, SharedInput) and module.joined is None:
            layers = [module.get_submodule(name) for name in module.shared]
            module.joined = (
                PackedLinear(layers, part=parts[top], let_go=let_go) if reorder else JoinedLinear(layers, let_go=let_go)
            )
            for name in module.shared:
                setattr(module, name, None)  # not deleted: parameters keep their order when they come back
        if reorder and isinstance(module, MLP) and module.act in _FUSED:
            packed = PackedLinear([module.fc1], activation=module.act, part=parts[top or "fc1"], let_go=let_go)
            setattr(module, "fc1", packed)  # noqa: B010
            module.act = _unchanged
        for name, child in list(module.named_children()):
            plain = type(child) in (nn.Linear, DecoupledLinear)
            if reorder and plain and not any(id(weight) in tied for weight in child.parameters()):
                setattr(module, name, PackedLinear([child], part=parts[top or name], let_go=let_go))
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in tied:
                assign(module, name, owned(parameter.detach()))
                let_go(parameter)
    return model.eval().requires_grad_(False)


def finish_packing(model: _Model) -> _Model:
    """Arranges all weights of a packed model that still wait for their first use; nothing is left to do for a plain one.

    For a server that is to be ready when it says so, for measurements, and before a process divides (`os.fork`), so that
    the weights are shared. Threads that use the model meanwhile wait for the part that they need.

    Raises:
        RuntimeError: the memory ends, as torch says it (`weights.memory.explain_out_of_memory` tells it better).
    """
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.finish()
    return model


def unpack(model: _Model) -> _Model:
    """Undoes `pack` in place, layer by layer: the same layers with the same weights, to the bit."""
    for module in list(model.modules()):
        if isinstance(module, SharedInput) and isinstance(module.joined, JoinedLinear):
            for name, layer in zip(module.shared, module.joined.restore(), strict=True):
                setattr(module, name, layer)
            module.joined = None
        for name, child in list(module.named_children()):
            if isinstance(child, PackedLinear):
                if isinstance(module, MLP) and child.activation is not None:
                    module.act = child.activation
                setattr(module, name, child.restore()[0])
    return model.requires_grad_(True)


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, also of a packed model; there, each is made when its turn comes, and should be let go."""
    yield from model.named_parameters()
    for path, module in model.named_modules():
        if isinstance(module, JoinedLinear):
            owner, _, attribute = path.rpartition(".")
            names = cast("SharedInput", model.get_submodule(owner)).shared if attribute == "joined" else (attribute,)
            for name, parameters in zip(names, module.plain(), strict=True):
                for kind, value in parameters.items():
                    yield ".".join(filter(None, (owner, name, kind))), value


def _obstacle(model: nn.Module, *, reorder: bool) -> str | None:
    """Why a model cannot be packed, or None."""
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):  # as DTensors have it
        return "it is divided over processes"
    devices = _devices(model)
    if "meta" in devices or len(devices) > 1:
        return f"it is on {', '.join(sorted(devices))}, not whole on one kind of device"
    if not reorder:
        return None
    if devices != {"cpu"}:
        return f"weights are reordered on the CPU only, and it is on {devices.pop()}"
    unfit = sorted(str(dtype) for dtype in _dtypes(model) if not can_pack(dtype))
    return f"torch packs no {', '.join(unfit)} here" if unfit else None


def _devices(model: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
