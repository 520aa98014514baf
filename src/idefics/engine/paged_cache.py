"""Keys and values in blocks, so that requests of any length share one buffer and no room is set aside for what may come.

Letters: P new tokens of all sequences together, R rows of one token each, S keys of a row, M blocks of a row, H query heads,
G key-value heads, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from idefics.config import TextConfig
from idefics.engine.upload import moved, uploaded
from idefics.model.layers.attention import Backend, attention, causal_mask
from idefics.model.layers.paged_attention import paged_attention

__all__ = ["PagedKVCache", "PagedPass", "Segment"]


@dataclass(frozen=True)
class Segment:
    """The new tokens of one sequence.

    Attributes:
        blocks: that hold the sequence, the new tokens included.
        past: tokens before the new ones.
        tokens: new ones.
    """

    blocks: Sequence[int]
    past: int
    tokens: int


class PagedKVCache:
    """Buffers of blocks, two per layer.

    Args:
        config: the decoder's sizes.
        blocks: how many.
        size: tokens of a block.
        dtype: of keys and values.
        devices: one per layer.
        heads: key-value heads that are computed here.

    Attributes:
        scratch: one block more, which belongs to nobody: padding is written there.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        blocks: int,
        size: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        heads: int,
    ) -> None:
        self.scratch = blocks
        shape = (blocks + 1, heads, size, config.head_dim)
        # What is masked is still multiplied by zero, so it must be a number.
        self.keys = [_zeros(shape, dtype, device) for device in devices]
        self.values = [_zeros(shape, dtype, device) for device in devices]
        self.size = size
        self.heads = heads
        self.window = config.sliding_window

    def rows_of(self, blocks: Tensor) -> Tensor:
        """Where blocks (..., M) lie in a buffer seen as (blocks x heads, size x K): (..., G, M), so that what is gathered
        in this order is (..., G, S, K) already.
        """
        return blocks[..., None, :] * self.heads + torch.arange(self.heads, device=blocks.device)[:, None]

    def wipe(self, blocks: Sequence[int]) -> None:
        """Zeros blocks that may hold what is no number, before others take them."""
        places = {device: uploaded(blocks, device) for device in {buffer.device for buffer in self.keys}}
        for buffer in (*self.keys, *self.values):
            buffer.index_fill_(0, places[buffer.device], 0)

    def pass_over(self, segments: Sequence[Segment]) -> PagedPass:
        """A pass over the new tokens of several sequences, those with one new token first."""
        return PagedPass(self, segments)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the system for zeros, which it hands out page by page as they are written to; torch writes them all.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one token each and of similar length, attended to together.

    Attributes:
        first: the first row's place among the new tokens.
        rows: how many.
        table_RM: their blocks; a shorter row's end with any.
        table_RGM: where these lie, see `PagedKVCache.rows_of`.
        newest_R: their tokens' places.
        mask_R1S: True for keys that a row's token sees.
    """

    first: int
    rows: int
    table_RM: Tensor
    table_RGM: Tensor
    newest_R: Tensor
    mask_R1S: Tensor

    def to(self, device: torch.device) -> Group:
        """The same on another device."""
        parts = (moved(part, device) for part in (self.table_RM, self.table_RGM, self.newest_R, self.mask_R1S))
        return Group(self.first, self.rows, *parts)


@dataclass(frozen=True, eq=False)
class Run:
    """Several new tokens of one sequence.

    Attributes:
        first: the first one's place among the new tokens.
        tokens: how many.
        keys: all of the sequence's so far, the new ones included.
        table_GM: where the blocks lie that hold them.
        mask_1TS: what each new token sees; None for everything before it.
    """

    first: int
    tokens: int
    keys: int
    table_GM: Tensor
    mask_1TS: Tensor | None = None

    def to(self, device: torch.device, *, window: int | None) -> Run:
        """The same on a device, with its mask, which is made there: it would be the largest thing to send."""
        past = self.keys - self.tokens
        mask_1TS = causal_mask(queries=self.tokens, past=past, window=window, key_mask_BS=None, device=device)
        return replace(self, table_GM=moved(self.table_GM, device), mask_1TS=mask_1TS)


def reads_in_place(q_BHTK: Tensor) -> bool:
    """Whether rows of one token are left to `paged_attention`, which makes the mask anew for each layer if it has no kernel."""
    return q_BHTK.is_cuda


class PagedPass:
    """One pass of the decoder over packed new tokens (1, H, P, K); see `model/cache.py` for what it is asked."""

    def __init__(self, cache: PagedKVCache, segments: Sequence[Segment]) -> None:
        self._cache = cache
        self._segments = segments
        self._drawn_up: tuple[Tensor, list[Group], list[Run]]
        self._plans: dict[torch.device, tuple[Tensor, list[Group], list[Run]]] = {}

    def start(self, tokens: int, key_mask_BS: Tensor | None, device: torch.device) -> None:
        """Works out, once for all layers, where keys go and what is looked at."""
        assert key_mask_BS is None, "packed tokens have no padding"
        assert tokens == sum(segment.tokens for segment in self._segments), "tokens and segments differ in number"
        size, slots = self._cache.size, []
        for segment in self._segments:
            places = range(segment.past, segment.past + segment.tokens)
            slots += [(segment.blocks[place // size] * self._cache.heads * size) + place % size for place in places]
        singles = [segment for segment in self._segments if segment.tokens == 1]
        assert list(self._segments[: len(singles)]) == singles, "sequences with one new token come first"
        slots_PG = torch.tensor(slots)[:, None] + torch.arange(self._cache.heads) * size
        self._drawn_up = slots_PG, self._groups(singles), self._runs(len(singles))
        self._plans = {}
        self._plan(device)

    def _groups(self, singles: Sequence[Segment]) -> list[Group]:
        """Neighbours are attended to together as long as padding their tables no more than doubles the work."""
        groups, first = [], 0
        needed = [segment.past // self._cache.size + 1 for segment in singles]
        while first < len(singles):
            last, most, total = first, 0, 0
            while last < len(singles):
                grown = max(most, needed[last])
                if grown * (last + 1 - first) > 2 * (total + needed[last]):
                    break
                most, total, last = grown, total + needed[last], last + 1
            rows = singles[first:last]
            table = [[*s.blocks[:n], *[s.blocks[0]] * (most - n)] for s, n in zip(rows, needed[first:last], strict=True)]
            key_1S = torch.arange(most * self._cache.size)[None]
            newest_R1 = torch.tensor([segment.past for segment in rows])[:, None]
            mask_RS = key_1S <= newest_R1
            if self._cache.window is not None:
                mask_RS &= newest_R1 - key_1S < self._cache.window
            table_RM = torch.from_numpy(np.array(table, dtype=np.int64))  # several times as fast as torch.tensor
            groups.append(Group(first, len(rows), table_RM, self._cache.rows_of(table_RM), newest_R1[:, 0], mask_RS[:, None]))
            first = last
        return groups

    def _runs(self, singles: int) -> list[Run]:
        runs, at = [], singles
        for segment in self._segments[singles:]:
            keys = segment.past + segment.tokens
            table_GM = self._cache.rows_of(torch.tensor(segment.blocks[: -(-keys // self._cache.size)]))
            runs.append(Run(at, segment.tokens, keys, table_GM))
            at += segment.tokens
        return runs

    def _plan(self, device: torch.device) -> tuple[Tensor, list[Group], list[Run]]:
        """Layers may lie on several devices."""
        if device not in self._plans:
            slots_PG, groups, runs = self._drawn_up
            there = [group.to(device) for group in groups], [run.to(device, window=self._cache.window) for run in runs]
            self._plans[device] = (moved(slots_PG, device), *there)
        return self._plans[device]

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, *, backend: Backend) -> Tensor:
        """Writes the new keys and values to their places, then lets every sequence's tokens look at their own."""
        slots_PG, groups, runs = self._plan(q_BHTK.device)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        for buffer, new_BGTK in ((keys, k_BGTK), (values, v_BGTK)):
            buffer.flatten(0, 2).index_copy_(0, slots_PG.flatten(), new_BGTK[0].transpose(0, 1).flatten(0, 1))
        outputs = []
        for group in groups:
            rows = slice(group.first, group.first + group.rows)
            q_RH1K = q_BHTK[0, :, rows].transpose(0, 1)[:, :, None]
            if reads_in_place(q_BHTK):
                out_RHK = paged_attention(
                    q_RH1K[:, :, 0], keys, values, table_RM=group.table_RM, newest_R=group.newest_R, window=self._cache.window,
                    backend=backend,
                )  # fmt: skip
                outputs.append(out_RHK.transpose(0, 1)[None])
                continue
            k_RGSK, v_RGSK = (_gathered(buffer, group.table_RGM) for buffer in (keys, values))
            out_RH1K = attention(q_RH1K, k_RGSK, v_RGSK, mask_BTS=group.mask_R1S, causal=False, backend=backend)
            outputs.append(out_RH1K[:, :, 0].transpose(0, 1)[None])
        for run in runs:
            new = slice(run.first, run.first + run.tokens)
            if run.keys == run.tokens:
                k_1GSK, v_1GSK = k_BGTK[:, :, new], v_BGTK[:, :, new]
            else:
                k_1GSK, v_1GSK = (_gathered(buffer, run.table_GM)[None, :, : run.keys] for buffer in (keys, values))
            causal = run.mask_1TS is None and run.tokens > 1
            outputs.append(attention(q_BHTK[:, :, new], k_1GSK, v_1GSK, mask_BTS=run.mask_1TS, causal=causal, backend=backend))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def advance(self, tokens: int) -> None:
        """The scheduler counts."""


def _gathered(buffer: Tensor, table: Tensor) -> Tensor:
    """The keys or values of blocks: (..., G, M) places to (..., G, S, K), in one copy."""
    *shape, blocks = table.shape
    rows = buffer.flatten(0, 1).flatten(1).index_select(0, table.flatten())
    return rows.view(*shape, blocks * buffer.shape[2], buffer.shape[3])
