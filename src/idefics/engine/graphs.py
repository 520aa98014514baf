"""Passes in which every answer gets one token, with static shapes: what a CUDA graph can record and replay.

A model of 32 layers is a thousand kernels; to start them one by one from Python takes longer than an H200 takes to read the
weights. So such a pass is padded to one of a few shapes (answers to a power of two, blocks per answer to a power of two),
and each shape is recorded once, when it is first met, and replayed from then on. All that a step sends to the device is one
small table, into a buffer that the recording reads.

Padding rows write to a block that nobody owns, and what they compute is dropped. Without a GPU the same step can be run without
recording, to be tested.

Letters: R rows, M blocks of a row, H query heads, G key-value heads, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idefics.engine.paged_cache import PagedKVCache, Segment
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.model.layers.paged_attention import paged_attention
from idefics.model.layers.shortcut import Shortcut

__all__ = ["DecodeGraphs", "StaticPass", "graphs_fit", "record"]

LEAST_BLOCKS = 16
"""Of a row's table: shorter ones would only be more shapes to record."""

WARMUPS = 2
"""Runs before recording, in which libraries choose and compile what the recording must find ready."""

TOKEN, PLACE, SLOT, TABLE = 0, 1, 2, 3
"""Columns of a step's table: the newest token, its place in its row, where its keys go, and from there on the blocks."""


def graphs_fit(model: VisionLanguageModel) -> bool:
    """Whether a model's steps can be one recording: it is whole, and all of it on one device."""
    devices = {model.device, *model.layer_devices, *(parameter.device for parameter in model.lm_head.parameters())}
    return len(devices) == 1 and not model.is_divided


class StaticPass:
    """A pass of the decoder over one new token of each row, packed (1, H, R, K); see `model/cache.py` for what it is asked.

    Args:
        cache: whose blocks are read and written.
        rows_RX: int64; of each row what the columns say. Its content may change between passes.
    """

    def __init__(self, cache: PagedKVCache, rows_RX: Tensor) -> None:
        self._cache = cache
        self._rows_RX = rows_RX
        self._slots_X = rows_RX[:, SLOT]

    def start(self, tokens: int, key_mask_BS: Tensor | None, device: torch.device) -> None:
        """Almost everything is in the table already; each head of a token has a place of its own."""
        assert key_mask_BS is None, "packed tokens have no padding"
        assert tokens == len(self._rows_RX), "tokens and rows differ in number"
        assert device == self._rows_RX.device, "a step is on one device"
        size, slot_R = self._cache.size, self._rows_RX[:, SLOT]
        block_RG = self._cache.rows_of((slot_R // size)[:, None])[..., 0]
        self._slots_X = (block_RG * size + (slot_R % size)[:, None]).flatten()

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, *, backend: Backend) -> Tensor:
        """Writes the new keys and values to their places, then lets every row's token look at its own."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        for buffer, new_BGTK in ((keys, k_BGTK), (values, v_BGTK)):
            buffer.flatten(0, 2).index_copy_(0, self._slots_X, new_BGTK[0].transpose(0, 1).flatten(0, 1))
        out_RHK = paged_attention(
            q_BHTK[0].transpose(0, 1),
            keys,
            values,
            table_RM=self._rows_RX[:, TABLE:],
            newest_R=self._rows_RX[:, PLACE],
            window=self._cache.window,
            backend=backend,
        )
        return out_RHK.transpose(0, 1)[None]

    def advance(self, tokens: int) -> None:
        """The scheduler counts."""


@dataclass(frozen=True, eq=False)
class Shape:
    """One shape, ready to be run again and again.

    Attributes:
        rows_RX: what a run reads.
        run: computes logits (R, V), float32; they are overwritten by the next run of any shape.
    """

    rows_RX: Tensor
    run: Callable[[], Tensor]


class DecodeGraphs:
    """A model's steps of one token per answer, by shape.

    Args:
        model: for which `graphs_fit`.
        cache: of the same model; its `scratch` block takes what padding rows write.
    """

    def __init__(self, model: VisionLanguageModel, cache: PagedKVCache) -> None:
        self._model = model
        self._cache = cache
        self._shapes: dict[tuple[int, int], Shape] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None  # one for all: each stream has a workspace for its products
        self.shortcut = Shortcut("recording a step as a CUDA graph", "steps are started kernel by kernel")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(rows, blocks per row) of all that were met so far."""
        return list(self._shapes)

    def run(self, ids: Sequence[int], segments: Sequence[Segment]) -> Tensor | None:
        """Computes one token of each row, none of which sees an image by other ways than the cache.

        Args:
            ids: each row's newest token.
            segments: of one token each.

        Returns:
            float32 logits (rows, V); None if this way has failed, now or before: whatever it wrote, the plain way writes again.
        """
        logits_RV = self.shortcut.attempt(lambda: self._run(ids, segments))
        if logits_RV is None:  # what was recorded would keep its memory, perhaps the very memory that was missing
            self._shapes.clear()
            self._pool = self._stream = None
        return logits_RV

    def _run(self, ids: Sequence[int], segments: Sequence[Segment]) -> Tensor:
        device = self._model.device
        if device.type != "cuda":
            return self._padded(ids, segments, device)
        with torch.cuda.device(device):
            return self._padded(ids, segments, device)

    def _padded(self, ids: Sequence[int], segments: Sequence[Segment], device: torch.device) -> Tensor:
        rows, blocks = power_of_two(len(ids)), power_of_two(max(self._needed(s) for s in segments), least=LEAST_BLOCKS)
        table_RX = self._table(ids, segments, rows, blocks)
        if device.type == "cuda":
            table_RX = table_RX.pin_memory()  # so that sending it waits for nothing; torch keeps it until it has arrived
        shape = self._shapes.get((rows, blocks))
        if shape is None:
            shape = self._shapes[rows, blocks] = self._made(table_RX.to(device))
        else:
            shape.rows_RX.copy_(table_RX, non_blocking=True)
        return shape.run()[: len(ids)].clone()

    def _needed(self, segment: Segment) -> int:
        return segment.past // self._cache.size + 1

    def _table(self, ids: Sequence[int], segments: Sequence[Segment], rows: int, blocks: int) -> Tensor:
        size, scratch = self._cache.size, self._cache.scratch
        # numpy: 64 lists of 512 numbers take it 0.8 ms and torch 12, which is more than the step.
        table_RX = np.full((rows, TABLE + blocks), scratch, dtype=np.int64)
        table_RX[:, :TABLE] = 0, 0, scratch * size
        for row, token, segment in zip(table_RX, ids, segments, strict=False):
            assert segment.tokens == 1, "one token per row"
            own = segment.blocks[: self._needed(segment)]
            row[:TABLE] = token, segment.past, own[-1] * size + segment.past % size
            row[TABLE : TABLE + len(own)] = own
            # What is masked is still multiplied by zero, so it must be the row's own, which is finite.
            row[TABLE + len(own) :] = own[0]
        return torch.from_numpy(table_RX)

    def _made(self, rows_RX: Tensor) -> Shape:
        """A shape whose buffer holds a first step already; on a GPU, recorded."""

        def step() -> Tensor:
            hidden_1RD = self._model(
                rows_RX[None, :, TOKEN], positions_BT=rows_RX[None, :, PLACE], cache=StaticPass(self._cache, rows_RX)
            )
            return self._model.logits(hidden_1RD[0]).float()

        if rows_RX.device.type != "cuda":
            return Shape(rows_RX, step)
        if self._pool is None or self._stream is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        try:
            return Shape(rows_RX, record(step, self._pool, self._stream))
        except torch.OutOfMemoryError as error:
            # Recordings keep memory of their own, so the plain way may still fit.
            raise RuntimeError("not enough memory for it") from error


def record(step: Callable[[], Tensor], pool: Any, side: torch.cuda.Stream) -> Callable[[], Tensor]:
    """Records what `step` starts on the current GPU; the result starts it again and returns the same tensor every time.

    Args:
        step: without arguments; reads and writes tensors that stay where they are.
        pool: from `torch.cuda.graph_pool_handle`: memory that all recordings of one model share; no two may be needed at once.
        side: of the current GPU, where it is recorded; torch's own for that is one for all GPUs.
    """
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads (preparing images, another engine) may go on using the GPU meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
        made = step()

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay


def power_of_two(number: int, *, least: int = 1) -> int:
    """The smallest power of two that is at least `number` and `least`.

    >>> [power_of_two(number) for number in (1, 2, 3, 64, 65)], power_of_two(3, least=16)
    ([1, 2, 4, 64, 128], 16)
    """
    return 1 << (max(number, least) - 1).bit_length()
