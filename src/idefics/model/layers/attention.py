"""Attention, once: every caller goes through two functions, every backend sits behind them.

`attention` serves rows of equal length (the decoder); `segmented_attention` serves packed sequences of unequal lengths
(images of any size, none padded). `"reference"` is the definition, in plain matrix products; `"sdpa"` is torch's fused
kernel. Both are tested against each other.

Letters: B rows, H query heads, G key-value heads (H a multiple of G), T queries, S keys, K head size, P packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Backend", "attention", "causal_mask", "segmented_attention"]

Backend = Literal["reference", "sdpa"]


def attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, mask_BTS: Tensor | None, causal: bool, backend: Backend
) -> Tensor:
    """Scaled dot-product attention with grouped key-value heads.

    Args:
        q_BHTK: queries.
        k_BGSK: keys.
        v_BGSK: values.
        mask_BTS: bool, True where a query may see a key; each query must see at least one. None: all.
        causal: query t sees keys 0..t; needs T == S and no mask.
        backend: which implementation.

    Returns:
        (B, H, T, K), dtype of `q_BHTK`.
    """
    assert not (causal and mask_BTS is not None), "a mask already says what is causal"
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    if groups > 1:
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(groups, dim=1), v_BGSK.repeat_interleave(groups, dim=1)
    mask = None if mask_BTS is None else mask_BTS[:, None]
    if backend == "sdpa":
        fused: Tensor = F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=causal)
        return fused
    scores = (q_BHTK @ k_BGSK.transpose(-1, -2)) * q_BHTK.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    out: Tensor = scores.softmax(dim=-1, dtype=torch.float32).to(v_BGSK.dtype) @ v_BGSK
    return out


def segmented_attention(
    q_PHK: Tensor,
    k_PGK: Tensor,
    v_PGK: Tensor,
    *,
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    backend: Backend,
) -> Tensor:
    """Attention within each segment of packed sequences, none padded: queries of segment i see all keys of segment i.

    Args:
        q_PHK: packed queries; `sum(q_lengths)` of them.
        k_PGK: packed keys; `sum(k_lengths)` of them.
        v_PGK: packed values, as the keys.
        q_lengths: queries of each segment.
        k_lengths: keys of each segment.
        backend: which implementation.

    Returns:
        Packed (P, H, K), in the order of the queries. Runs of segments of equal lengths are computed as one batch.
    """
    assert len(q_lengths) == len(k_lengths), "queries and keys have different segments"
    outputs = []
    q_at = k_at = first = 0
    while first < len(q_lengths):
        last = first
        while last < len(q_lengths) and (q_lengths[last], k_lengths[last]) == (q_lengths[first], k_lengths[first]):
            last += 1
        count, q_length, k_length = last - first, q_lengths[first], k_lengths[first]
        out_BHTK = attention(
            _rows(q_PHK[q_at : q_at + count * q_length], count),
            _rows(k_PGK[k_at : k_at + count * k_length], count),
            _rows(v_PGK[k_at : k_at + count * k_length], count),
            mask_BTS=None,
            causal=False,
            backend=backend,
        )
        outputs.append(out_BHTK.transpose(1, 2).flatten(0, 1))
        q_at, k_at, first = q_at + count * q_length, k_at + count * k_length, last
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _rows(x_PHK: Tensor, rows: int) -> Tensor:
    """Packed tokens of `rows` segments of one length as (rows, H, T, K)."""
    return x_PHK.reshape(rows, -1, *x_PHK.shape[1:]).transpose(1, 2)


def causal_mask(
    *, queries: int, past: int, window: int | None, key_mask_BS: Tensor | None, device: torch.device
) -> Tensor | None:
    """What each of `queries` new tokens may see of `past + queries` keys, or None where that is plainly everything before.

    Args:
        queries: T, new tokens; the first has `past` keys before it.
        past: keys already in the cache.
        window: keys that a token sees at most, itself included; None for no limit.
        key_mask_BS: bool, False for padding keys; None when there is none.
        device: where the mask is needed.

    Returns:
        bool (B or 1, T, S) where every query sees at least itself (a padding query's output is never read, but it must
        not be NaN), or None when an unmasked causal (T > 1, past == 0) or full (T == 1) attention says the same.
    """
    keys = past + queries
    if window is not None and window >= keys:
        window = None
    if key_mask_BS is None and window is None and (queries == 1 or past == 0):
        return None
    q_T1 = torch.arange(past, keys, device=device)[:, None]
    k_1S = torch.arange(keys, device=device)[None, :]
    mask_1TS = (k_1S <= q_T1)[None]
    if window is not None:
        mask_1TS = mask_1TS & (q_T1 - k_1S < window)
    if key_mask_BS is None:
        return mask_1TS
    return (mask_1TS & key_mask_BS[:, None, :]) | (q_T1 == k_1S)[None]
