"""A linear layer, or several joined, whose weight is arranged for the CPU, with the activation that follows.

`torch.nn.functional.linear` in 16 bits arranges the weight anew for every product, which costs more than the product where
there are few rows. Here each weight is arranged once, in oneDNN's order, and the product applies the activation that follows.

oneDNN's operations are torch's own but private, so `can_pack` tries them and compares before anything is packed. Where the
processor has no products of 16 bits, weights keep their order and are widened (`model/layers/widened.py`) instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.linears.borrowed import LetGo, borrows_memory, keep
from idefics.linears.joined import JoinedLinear
from idefics.linears.waiting import Portion, Scratch
from idefics.machine.arithmetic import multiplies
from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.widened import wide_linear

__all__ = ["FUSED", "PackedLinear", "can_pack"]

FEW_ROWS = 4
"""oneDNN reads weights from memory fastest for four to six rows, so there are never fewer (docs/log/cpu.md)."""

LARGE_WEIGHT = 2**21
"""Bytes from which a weight is taken to come from memory; what lies in a cache is read fast enough for one row."""

# Name, scalars, algorithm.
FUSED: dict[Callable[[Tensor], Tensor], tuple[str, list[float], str]] = {
    ACTIVATIONS["gelu_pytorch_tanh"]: ("gelu", [], "tanh"),
    ACTIVATIONS["gelu"]: ("gelu", [], "none"),
    ACTIVATIONS["relu"]: ("relu", [], ""),
    ACTIVATIONS["silu"]: ("swish", [], ""),
}
"""What oneDNN applies to a product on its way out."""
_PLAIN: tuple[str, list[float], str] = ("none", [], "")


class PackedLinear(JoinedLinear):
    """Joined layers whose weight lies in oneDNN's order, with the activation that follows them.

    The weight is arranged at the first product; up to then the layers' own weights wait, in mapped files if they lie there.

    Args:
        layers: as `JoinedLinear`, on the CPU.
        activation: applied to the product; one of those that can be fused.
        portion: what is arranged together with this; None for nothing.
        let_go: as `JoinedLinear`.

    Attributes:
        activation: None for none.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        portion: Portion | None = None,
        let_go: LetGo = keep,
    ) -> None:
        super().__init__(layers, let_go=let_go)
        self.activation = activation
        self._ops = _ops(self.dtype)
        self._fewest = FEW_ROWS if self._ops.few_are_slow and self.nbytes >= LARGE_WEIGHT else 1
        self._portion = Portion() if portion is None else portion
        self._portion.add(self)

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

    @property
    def memory(self) -> Tensor:
        """The arranged weight as bytes where it lies, to measure how fast it is read; as long as this object lives."""
        self.finish()
        return self._ops.memory(self._weight)

    def finish(self) -> None:
        """Arranges the weight if it still waits, and with it the portion that it belongs to.

        Raises:
            RuntimeError: the memory ends, as torch says it; to be tried again when there is some.
        """
        if self._waiting is not None:
            self._portion.reorder()

    def reorder(self, scratch: Scratch) -> None:
        """Arranges the weight if it still waits; for its portion only, which holds other threads off.

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

    def memory(self, weight: Tensor) -> Tensor:
        """The bytes of an arranged weight, where they lie."""
        ...


class _OneDNN:
    """The private operations, looked up once."""

    def __init__(self) -> None:
        self.few_are_slow = "AVX512" in torch.backends.cpu.get_cpu_capability()  # with AVX2 padding costs more than it wins
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._reorder = torch.ops.mkldnn._reorder_linear_weight.default

    def reorder(self, weight: Tensor) -> Tensor:
        packed: Tensor = self._reorder(weight.contiguous(), None)
        return packed

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, post: Callable[[Tensor], Tensor] | None) -> Tensor:
        out: Tensor = self._product(x, weight, bias, *(_PLAIN if post is None else FUSED[post]))
        return out

    def memory(self, weight: Tensor) -> Tensor:
        address, size = torch.ops.mkldnn.data_ptr(weight), torch.ops.mkldnn._nbytes(weight)
        return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)


class _Widened:
    """Weights as they are, multiplied in float32."""

    few_are_slow = False

    def reorder(self, weight: Tensor) -> Tensor:
        return weight.clone(memory_format=torch.contiguous_format)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, post: Callable[[Tensor], Tensor] | None) -> Tensor:
        return wide_linear(x, weight, bias, activation=post)

    def memory(self, weight: Tensor) -> Tensor:
        return weight.view(-1).view(torch.uint8)


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
            for activation in (None, *FUSED):
                found = ops.product(x, packed, bias, activation).float()
                expected = F.linear(x.float(), weight.float(), bias.float())
                expected = expected if activation is None else activation(expected)
                # Not torch.testing's: it imports DTensor and, with that, sympy, which takes longer than an answer.
                if not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
                    return False
            empty = ops.product(x[:, :0], packed, bias, None)
    except (RuntimeError, AttributeError, TypeError):  # as torch says that it has no such operation
        return False
    return tuple(empty.shape) == (3, 0, 37)
