"""What the processor multiplies by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

__all__ = ["multiplies"]


@lru_cache(maxsize=8)
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU has matrix products of a dtype, which torch then uses.

    >>> multiplies(torch.float32)
    True
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported: Callable[[], bool] | None = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
