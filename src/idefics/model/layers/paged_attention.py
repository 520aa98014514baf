"""Attention of one new token per row over keys and values that lie in blocks: the decoder's, token by token.

`paged_attention` is the one way in. The definition gathers each row's blocks and lets `attention` do the rest; on GPUs a Triton
kernel (`paged_kernel.py`) reads the blocks where they are, up to each row's own last key, and nothing is copied.

Letters: R rows, H query heads, G key-value heads, K head size, N blocks, Z tokens of a block, M blocks of a row, S = M * Z.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from idefics.model.layers.attention import Backend, attention
from idefics.model.layers.shortcut import Shortcut

__all__ = ["PAGED", "gathered_attention", "paged_attention"]

PAGED = Shortcut("the kernel for attention over blocks", "blocks are gathered before they are attended to")


def paged_attention(
    q_RHK: Tensor,
    keys_NGZK: Tensor,
    values_NGZK: Tensor,
    *,
    table_RM: Tensor,
    newest_R: Tensor,
    window: int | None,
    backend: Backend,
) -> Tensor:
    """Attends from each row's newest token to all of that row's, itself included.

    Nothing here waits for a GPU, and shapes depend on the arguments' shapes only, so that it can be part of a CUDA graph.

    Args:
        q_RHK: queries.
        keys_NGZK: all blocks; every number that a row's table reaches must be finite.
        values_NGZK: as the keys.
        table_RM: int64, which blocks hold the row, in order; after its last one, any.
        newest_R: int64, the newest token's place in its row, from 0: one less than the keys it sees.
        window: keys that a token sees at most, itself included; None for no limit.
        backend: `"auto"` takes the kernel where there is one.

    Returns:
        (R, H, K), dtype of `q_RHK`.
    """
    if backend == "auto" and q_RHK.is_cuda and _has_triton():
        found = PAGED.attempt(lambda: _kernel(q_RHK, keys_NGZK, values_NGZK, table_RM, newest_R, window))
        if found is not None:
            return found
    return gathered_attention(
        q_RHK, keys_NGZK, values_NGZK, table_RM=table_RM, newest_R=newest_R, window=window, backend=backend
    )


def gathered_attention(
    q_RHK: Tensor,
    keys_NGZK: Tensor,
    values_NGZK: Tensor,
    *,
    table_RM: Tensor,
    newest_R: Tensor,
    window: int | None,
    backend: Backend,
) -> Tensor:
    """`paged_attention` by its definition."""
    key_1S = torch.arange(table_RM.shape[1] * keys_NGZK.shape[2], device=q_RHK.device)[None]
    mask_RS = key_1S <= newest_R[:, None]
    if window is not None:
        mask_RS &= newest_R[:, None] - key_1S < window
    groups = keys_NGZK.shape[1]
    table_RGM = table_RM[:, None] * groups + torch.arange(groups, device=q_RHK.device)[:, None]
    # Gathered in this order, one copy is all: (R, G, M, Z x K) is (R, G, S, K).
    k_RGSK, v_RGSK = (
        blocks.flatten(0, 1).flatten(1).index_select(0, table_RGM.flatten()).view(len(q_RHK), groups, -1, q_RHK.shape[-1])
        for blocks in (keys_NGZK, values_NGZK)
    )
    out_RH1K = attention(q_RHK[:, :, None], k_RGSK, v_RGSK, mask_BTS=mask_RS[:, None], causal=False, backend=backend)
    return out_RH1K[:, :, 0]


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _kernel(
    q_RHK: Tensor, keys_NGZK: Tensor, values_NGZK: Tensor, table_RM: Tensor, newest_R: Tensor, window: int | None
) -> Tensor:
    from idefics.model.layers.paged_kernel import paged_kernel  # not at the top: it imports triton

    with torch.cuda.device(q_RHK.device):  # Triton starts kernels on the current GPU, wherever the tensors are
        return paged_kernel(q_RHK, keys_NGZK, values_NGZK, table_RM=table_RM, newest_R=newest_R, window=window)
