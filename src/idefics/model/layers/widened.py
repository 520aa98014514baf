"""Products of 16-bit weights on processors that multiply in float32 only.

Without instructions of its own torch multiplies 16-bit numbers one by one there, five to seven times slower than in float32
(docs/log/cpu.md). So weights stay in 16 bits, half the memory, and are widened a block at a time, which stays in the cache, to
be multiplied in float32. One row alone is read in 16 bits as it is: that is bound by memory, and torch is as fast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from idefics.machine.arithmetic import multiplies

__all__ = ["pays", "wide_linear"]

BLOCK = 2**20
"""Elements of a weight that are widened at once: 4 MiB."""


def pays(x: Tensor) -> bool:
    """Whether to widen a product with plain weights: the processor has none of this dtype, and nobody needs gradients."""
    return x.device.type == "cpu" and not multiplies(x.dtype) and not torch.is_grad_enabled()


def wide_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """A linear layer, and what follows it, computed in float32 and rounded once.

    Args:
        x: (..., in), in 16 bits.
        weight: (out, in), likewise.
        bias: (out,), or None.
        activation: applied before rounding.

    Returns:
        (..., out), dtype of `x`.
    """
    rows = x.shape[:-1].numel()
    if rows == 1:
        out = F.linear(x, weight, bias)
        return out if activation is None else activation(out.float()).to(x.dtype)
    x_RI = x.reshape(rows, x.shape[-1]).float()
    out_RO = torch.empty(rows, len(weight), dtype=x.dtype)
    step = max(1, BLOCK // max(1, weight.shape[1]))
    wide = torch.empty(min(step, len(weight)), weight.shape[1])
    for start in range(0, len(weight), step):
        block = weight[start : start + step]
        part = F.linear(x_RI, wide[: len(block)].copy_(block))
        if bias is not None:
            part += bias[start : start + step]
        out_RO[:, start : start + step] = part if activation is None else activation(part)
    return out_RO.view(*x.shape[:-1], len(weight))
