"""`paged_attention` in Triton: blocks are read where they are, each row only as far as it goes.

A program serves one row, one key-value head and one stretch of keys: all query heads that share these keys are one small
matrix, so that keys and values are read once. Long rows are cut into stretches, or few rows would leave most of a GPU idle;
a second kernel joins what the stretches found (arXiv 2205.14135, section 3.1; stretches as in "flash decoding"). What differs
from pass to pass is an argument, never a constant: another constant is another kernel, which takes a second to compile.

Measured nowhere yet; meant to beat the gathering definition, which reads, writes and reads again what this reads once.

Letters: R rows, H query heads, G key-value heads, K head size, N blocks, Z tokens of a block, M blocks of a row, C stretches.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["paged_kernel"]

KEYS_AT_ONCE = 64
"""In 16 bits; in float32 half as many, or they would not stay in registers."""

STRETCH = 256
"""Keys of a stretch at least."""

PROGRAMS = 512
"""More stretches than give so many programs only add to what must be joined: an H200 has 132 processors."""

LEAST_SIDE = 16
"""Of the matrices of a product: on NVIDIA's GPUs Triton refuses a shorter sum, and fewer rows are padded anyway."""


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, table_ptr, newest_ptr, out_ptr, top_ptr, sum_ptr,
    scale, newest_step, table_row, block_step, head_step, token_step, stretches, stretch_keys,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ALONE: tl.constexpr,
    WINDOW: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One stretch of one row's keys, for the heads that share them: weighted values, the largest score, the sum of weights."""
    row = tl.program_id(0)
    group = tl.program_id(1)
    stretch = tl.program_id(2)
    newest = tl.load(newest_ptr + row * newest_step)
    heads = tl.arange(0, SHARED)
    lanes = tl.arange(0, WIDTH)
    per_group: tl.constexpr = HEADS // GROUPS
    real = (heads[:, None] < per_group) & (lanes[None, :] < SIZE)
    head = group * per_group + heads
    q = tl.load(q_ptr + (row * HEADS + head[:, None]) * SIZE + lanes[None, :], mask=real, other=0.0)
    top = tl.full([SHARED], -1e30, tl.float32)
    total = tl.zeros([SHARED], tl.float32)
    out = tl.zeros([SHARED, WIDTH], tl.float32)
    first = stretch * stretch_keys
    last = tl.minimum(first + stretch_keys, newest + 1)
    oldest = 0
    if WINDOW > 0:
        oldest = tl.maximum(newest + 1 - WINDOW, 0)
        first = tl.maximum(first, oldest // STEP * STEP)
    for begin in range(first, last, STEP):
        place = begin + tl.arange(0, STEP)
        seen = (place < last) & (place >= oldest)
        block = tl.load(table_ptr + row * table_row + place // BLOCK, mask=seen, other=0)
        at = block * block_step + (place % BLOCK) * token_step + group * head_step
        held = seen[:, None] & (lanes[None, :] < SIZE)
        k = tl.load(k_ptr + at[:, None] + lanes[None, :], mask=held, other=0.0)
        v = tl.load(v_ptr + at[:, None] + lanes[None, :], mask=held, other=0.0)
        # "ieee": float32 must not be rounded to TF32, or greedy tokens would differ from the definition's.
        scores = tl.dot(q, tl.trans(k), input_precision="ieee").to(tl.float32) * scale
        scores = tl.where(seen[None, :], scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee").to(tl.float32)
        top = higher
    if ALONE:
        out = out / total[:, None]
        tl.store(out_ptr + (row * HEADS + head[:, None]) * SIZE + lanes[None, :], out.to(out_ptr.dtype.element_ty), mask=real)
    else:
        part = (row * HEADS + head) * stretches + stretch
        tl.store(out_ptr + part[:, None] * SIZE + lanes[None, :], out, mask=real)
        tl.store(top_ptr + part, top, mask=heads < per_group)
        tl.store(sum_ptr + part, total, mask=heads < per_group)


@triton.jit
def _join(
    out_ptr,
    top_ptr,
    sum_ptr,
    joined_ptr,
    stretches,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One head of one row: what its stretches found, weighed by their sums. A stretch without keys weighs nothing."""
    head = tl.program_id(0)
    number = tl.arange(0, PADDED)
    lanes = tl.arange(0, WIDTH)
    part = head * stretches + number
    there = number < stretches
    top = tl.load(top_ptr + part, mask=there, other=-1e30)
    weight = tl.exp(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(sum_ptr + part, mask=there, other=0.0), 0)
    held = there[:, None] & (lanes[None, :] < SIZE)
    out = tl.load(out_ptr + part[:, None] * SIZE + lanes[None, :], mask=held, other=0.0)
    joined = tl.sum(out * weight[:, None], 0) / total
    tl.store(joined_ptr + head * SIZE + lanes, joined.to(joined_ptr.dtype.element_ty), mask=lanes < SIZE)


def paged_kernel(
    q_RHK: Tensor, keys_NGZK: Tensor, values_NGZK: Tensor, *, table_RM: Tensor, newest_R: Tensor, window: int | None
) -> Tensor:
    """As `paged_attention`; tables and places of any integer dtype.

    Blocks must be of one layout for keys and values, with each head's numbers next to each other.
    """
    (rows, heads, size), (_, groups, block, _) = q_RHK.shape, keys_NGZK.shape
    assert keys_NGZK.stride() == values_NGZK.stride(), "keys and values lie differently"
    assert keys_NGZK.stride(3) == 1, "a head's numbers are apart"
    assert table_RM.stride(1) == 1, "a row's blocks are apart in the table"
    q_RHK = q_RHK.contiguous()
    stretches, keys = _stretches(rows * groups, table_RM.shape[1] * block)
    width, shared = (max(LEAST_SIDE, triton.next_power_of_2(length)) for length in (size, heads // groups))
    joined_RHK = torch.empty_like(q_RHK)
    found, top, total = joined_RHK, joined_RHK, joined_RHK
    if stretches > 1:
        found = q_RHK.new_empty(rows, heads, stretches, size, dtype=torch.float32)
        top, total = (q_RHK.new_empty(rows, heads, stretches, dtype=torch.float32) for _ in range(2))
    launch: Any = _attend[(rows, groups, stretches)]
    launch(
        q_RHK, keys_NGZK, values_NGZK, table_RM, newest_R, found, top, total,
        size**-0.5, newest_R.stride(0), table_RM.stride(0), *keys_NGZK.stride()[:3], stretches, keys,
        HEADS=heads, GROUPS=groups, SIZE=size, BLOCK=block, ALONE=stretches == 1, WINDOW=window or 0,
        SHARED=shared, WIDTH=width, STEP=KEYS_AT_ONCE * 2 // q_RHK.element_size(),
    )  # fmt: skip
    if stretches > 1:
        join: Any = _join[(rows * heads,)]
        padded = triton.next_power_of_2(stretches)
        join(found, top, total, joined_RHK, stretches, SIZE=size, PADDED=padded, WIDTH=width)
    return joined_RHK


def _stretches(programs: int, keys: int) -> tuple[int, int]:
    """How many stretches so many keys are cut into, and how many keys each has; the same for all rows of one shape."""
    most = max(1, PROGRAMS // programs)
    length = max(STRETCH, triton.cdiv(triton.cdiv(keys, most), KEYS_AT_ONCE) * KEYS_AT_ONCE)
    return triton.cdiv(keys, length), length
