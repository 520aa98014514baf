"""Attention within packed sequences of unequal lengths in one kernel: torch's `varlen_attn`, on GPUs.

Letters: H query heads, G key-value heads, K head size, P packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from idefics.model.layers.shortcut import Shortcut

__all__ = ["VARLEN", "fits_varlen", "varlen_attention"]

VARLEN = Shortcut("attention of packed images in one kernel", "images of equal sizes are attended to together")

# Of the FlashAttention kernels behind it; head sizes of the published towers and resamplers are 72, 80 and 96.
DTYPES = (torch.float16, torch.bfloat16)
HEAD_MULTIPLE, LARGEST_HEAD = 8, 256
LEAST_CAPABILITY = (8, 0)


def fits_varlen(q_PHK: Tensor) -> bool:
    """Whether the kernel takes such queries on their device; what it cannot take is no failure of it."""
    if not (q_PHK.is_cuda and q_PHK.dtype in DTYPES and q_PHK.shape[-1] % HEAD_MULTIPLE == 0):
        return False
    return q_PHK.shape[-1] <= LARGEST_HEAD and _capability(q_PHK.device) >= LEAST_CAPABILITY


def varlen_attention(
    q_PHK: Tensor, k_PGK: Tensor, v_PGK: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int]
) -> Tensor | None:
    """As `segmented_attention`, all segments at once; None if the kernel cannot be had."""

    def run() -> Tensor:
        k_PHK, v_PHK = k_PGK, v_PGK
        shared = q_PHK.shape[1] // k_PGK.shape[1]
        if shared > 1:  # torch 2.11 has no `enable_gqa` here; only resamplers share, whose queries are few
            k_PHK, v_PHK = k_PGK.repeat_interleave(shared, dim=1), v_PGK.repeat_interleave(shared, dim=1)
        q_starts, k_starts = _starts(tuple(q_lengths), q_PHK.device), _starts(tuple(k_lengths), q_PHK.device)
        out: Tensor = _kernel()(q_PHK, k_PHK, v_PHK, q_starts, k_starts, max(q_lengths), max(k_lengths))
        return out

    return VARLEN.attempt(run)


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn  # not at the top: it registers operations

    return varlen_attn


@lru_cache(maxsize=64)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each segment begins, and the end, int32: made once for all layers, which would each wait for the copy."""
    with torch.inference_mode(mode=False):  # what is kept may be used in training later
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
