"""Root-mean-square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RMSNorm", "normalised"]

ELEMENTS_AT_ONCE = 2**20
"""Of a long input, so many are normalised together: what they need in float32 stays in a processor's cache."""


def normalised(x: Tensor, *, eps: float) -> Tensor:
    """Scales the last dimension to unit mean square, computed in float32, rounded to the input's dtype."""
    if x.device.type != "cpu" or x.numel() <= ELEMENTS_AT_ONCE or (x.requires_grad and torch.is_grad_enabled()):
        return F.rms_norm(x, x.shape[-1:], None, eps)  # in float32 inside, rounded once
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = max(1, ELEMENTS_AT_ONCE // x.shape[-1])
    pieces = (torch.split(whole, rows) for whole in (x.reshape(-1, x.shape[-1]), out.view(-1, x.shape[-1])))
    for given, made in zip(*pieces, strict=True):
        made.copy_(F.rms_norm(given.float(), given.shape[-1:], None, eps))
    return out


class RMSNorm(nn.Module):
    """Scales the last dimension to unit mean square, then by a learned weight in the input's dtype.

    The order (normalise, round to the input's dtype, multiply) is the published one; fusing it changes bf16 results.
    """

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` of shape (..., size)."""
        return self.weight * normalised(x, eps=self.eps)
