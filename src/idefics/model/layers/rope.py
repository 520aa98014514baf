"""Rotary positions (arXiv 2104.09864), in the half-split layout of the published weights."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotary_angles", "rotate"]


def rotary_angles(positions_BT: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of shape (B, 1, T, K), computed in float32 and rounded once to `dtype`, as `rotate` takes them.

    The sines of the first half are negated: so `rotate` need not negate half of its argument.

    Args:
        positions_BT: whole positions, any integer dtype.
        head_dim: K, even.
        theta: the base of the geometric progression of wavelengths.
        dtype: dtype of the result.
    """
    halves = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_BT.device).float()
    frequencies = 1.0 / (theta ** (halves / head_dim))
    angles = positions_BT[:, None, :, None].float() * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[k], x[k + K/2]) by its angle."""
    return x_BHTK * cos + x_BHTK.roll(x_BHTK.shape[-1] // 2, dims=-1) * sin
