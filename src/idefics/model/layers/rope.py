"""Rotary positions (arXiv 2104.09864), in the half-split layout of the published weights."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotary_angles", "rotate"]


def rotary_angles(positions_BT: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of shape (B, 1, T, K), computed in float32 and rounded once to `dtype`.

    Args:
        positions_BT: whole positions, any integer dtype.
        head_dim: K, even.
        theta: the base of the geometric progression of wavelengths.
        dtype: dtype of the result.
    """
    halves = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_BT.device).float()
    frequencies = 1.0 / (theta ** (halves / head_dim))
    angles = positions_BT[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[k], x[k + K/2]) by its angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos + torch.cat((-second, first), dim=-1) * sin
