"""Attention, once: every caller goes through two functions, every backend sits behind them.

`attention` serves rows of equal length (the decoder); `segmented_attention` serves packed sequences of unequal lengths
(images of any size, none padded). `"reference"` is the definition, in plain matrix products; `"sdpa"` is torch's fused
kernel; `"blocked"` is plain products again, of blocks that stay in a processor's cache, keys and values never repeated;
`"auto"` takes the one that was measured to be fastest. All are tested against each other.

Letters: B rows, H query heads, G key-value heads (H a multiple of G), T queries, S keys, K head size, P packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from idefics.machine.arithmetic import multiplies
from idefics.model.layers.varlen import fits_varlen, varlen_attention

__all__ = ["Backend", "attention", "causal_mask", "fastest", "segmented_attention"]

Backend = Literal["auto", "reference", "sdpa", "blocked"]

BLOCK_ROWS = 512
"""Queries in one block: its scores over the keys of one 980 x 980 image, 5 MB in 16 bits, stay in the cache."""

SCORES_AT_ONCE = 2**20
"""Up to so many scores, one product for all heads is faster than many small ones."""

FEW_KEYS = 100_000
"""Of so many numbers in the keys, one query of 16 bits is answered fastest by one call, though not by the best kernel."""


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
    if backend == "auto":
        backend = fastest(q_BHTK, k_BGSK)
    if backend == "blocked":
        if _small(q_BHTK, k_BGSK):
            return _at_once(q_BHTK, k_BGSK, v_BGSK, mask_BTS, causal)
        return _by_blocks(q_BHTK, k_BGSK, v_BGSK, mask_BTS, causal)
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    mask = None if mask_BTS is None else mask_BTS[:, None]
    if backend == "sdpa":
        return _fused(q_BHTK, k_BGSK, v_BGSK, mask, causal, groups)
    if groups > 1:
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(groups, dim=1), v_BGSK.repeat_interleave(groups, dim=1)
    scores = (q_BHTK @ k_BGSK.transpose(-1, -2)) * q_BHTK.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    out: Tensor = scores.softmax(dim=-1, dtype=torch.float32).to(v_BGSK.dtype) @ v_BGSK
    return out


def fastest(q_BHTK: Tensor, k_BGSK: Tensor) -> Backend:
    """What `"auto"` takes for such queries and keys (docs/log/cpu.md has the measurements).

    `"sdpa"` wherever gradients are needed, and on GPUs but for one query of heads that share keys: torch's fused kernels take a
    mask there only with the keys repeated, while `"blocked"` is then one product per matrix. On CPUs in float32 `"blocked"` for
    one query, and in 16 bits for all, as torch's fused kernel is written for processors with AMX alone; but for one query of
    few keys one call, of whatever kernel, costs less than nine, and a processor without products of 16 bits takes the kernel,
    which multiplies in float32 by itself.
    """
    if torch.is_grad_enabled() and (q_BHTK.requires_grad or k_BGSK.requires_grad):
        return "sdpa"
    if q_BHTK.device.type != "cpu":
        return "blocked" if q_BHTK.shape[2] == 1 and q_BHTK.shape[1] > k_BGSK.shape[1] else "sdpa"
    if q_BHTK.dtype == torch.float32:
        return "blocked" if q_BHTK.shape[2] == 1 else "sdpa"
    if q_BHTK.shape[2] == 1 and k_BGSK.numel() <= FEW_KEYS:
        return "sdpa"
    return "sdpa" if _has_amx() or not multiplies(q_BHTK.dtype) else "blocked"


def _shares_keys(q_BHTK: Tensor) -> bool:
    """Whether torch has a fused kernel here that reads shared keys where they are: in 16 bits on GPUs, without a mask."""
    return q_BHTK.is_cuda and q_BHTK.dtype in (torch.float16, torch.bfloat16)


@lru_cache(maxsize=1)
def _has_amx() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


def _fused(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None, causal: bool, groups: int) -> Tensor:
    """In one call."""
    if groups > 1 and q_BHTK.shape[2] == 1:  # then the heads that share keys are as good as queries
        out_BGRK = F.scaled_dot_product_attention(q_BHTK.reshape(*k_BGSK.shape[:2], groups, -1), k_BGSK, v_BGSK, attn_mask=mask)
        return out_BGRK.reshape(q_BHTK.shape)
    shares = groups > 1 and mask is None and _shares_keys(q_BHTK)
    if groups > 1 and not shares:
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(groups, dim=1), v_BGSK.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=causal, enable_gqa=shares)


def _small(q_BHTK: Tensor, k_BGSK: Tensor) -> bool:
    rows, heads, queries, _ = q_BHTK.shape
    return queries == 1 or rows * heads * queries * k_BGSK.shape[2] <= SCORES_AT_ONCE


def _at_once(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_BTS: Tensor | None, causal: bool) -> Tensor:
    """All heads in one product: the queries of all heads that share keys are rows of one matrix."""
    (rows, heads, queries, size), (_, groups, keys, _) = q_BHTK.shape, k_BGSK.shape
    shared = heads // groups
    q_BGRK = (q_BHTK * size**-0.5).reshape(rows, groups, shared * queries, size)
    scores = q_BGRK @ k_BGSK.transpose(-1, -2)
    if causal and queries > 1:
        mask_BTS = torch.ones(1, queries, keys, dtype=torch.bool, device=scores.device).tril()
    if mask_BTS is not None:
        hidden = ~mask_BTS[:, None, None]
        scores = scores.view(rows, groups, shared, queries, keys).masked_fill(hidden, torch.finfo(scores.dtype).min)
        scores = scores.view(rows, groups, shared * queries, keys)
    out_BGRK: Tensor = scores.softmax(dim=-1) @ v_BGSK
    return out_BGRK.view(rows, heads, queries, size)


def _by_blocks(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_BTS: Tensor | None, causal: bool) -> Tensor:
    """One group of heads and one block of queries at a time; keys after a block's last query are not touched."""
    (rows, heads, queries, size), (_, groups, keys, _) = q_BHTK.shape, k_BGSK.shape
    shared = heads // groups
    step = max(1, BLOCK_ROWS // shared)
    out_BTHK = q_BHTK.new_empty(rows, queries, heads, size)
    for row, group in product(range(rows), range(groups)):
        own = slice(group * shared, (group + 1) * shared)
        k_SK, v_SK = k_BGSK[row, group].contiguous(), v_BGSK[row, group].contiguous()
        for first in range(0, queries, step):
            last = min(queries, first + step)
            seen = last if causal else keys
            q_RK = (q_BHTK[row, own, first:last] * size**-0.5).reshape(-1, size)
            scores = q_RK @ k_SK[:seen].t()
            if causal or mask_BTS is not None:
                hidden_TS = (
                    _later(first, last, scores.device) if mask_BTS is None else ~mask_BTS[row % len(mask_BTS), first:last]
                )
                part = scores.view(shared, last - first, seen)[..., seen - hidden_TS.shape[1] :]
                part.masked_fill_(hidden_TS, torch.finfo(scores.dtype).min)
            out_RK = scores.softmax(dim=-1) @ v_SK[:seen]
            out_BTHK[row, first:last, own] = out_RK.view(shared, last - first, size).transpose(0, 1)
    return out_BTHK.transpose(1, 2)


def _later(first: int, last: int, device: torch.device) -> Tensor:
    """Which of the keys `first` to `last` come after each of the queries of the same places."""
    return torch.ones(last - first, last - first, dtype=torch.bool, device=device).triu(1)


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
        Packed (P, H, K), in the order of the queries. Runs of segments of equal lengths are computed as one batch; by
        `"auto"`, on a GPU, segments of any lengths are.
    """
    assert len(q_lengths) == len(k_lengths), "queries and keys have different segments"
    if backend == "auto" and len({*zip(q_lengths, k_lengths, strict=True)}) > 1 and fits_varlen(q_PHK):
        packed = varlen_attention(q_PHK, k_PGK, v_PGK, q_lengths=q_lengths, k_lengths=k_lengths)
        if packed is not None:
            return packed
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
