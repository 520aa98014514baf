"""Keys and values in buffers made once: no copy per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.config import TextConfig
from idefics.model.cache import RowCache

__all__ = ["StaticKVCache"]


class StaticKVCache(RowCache):
    """A cache of fixed capacity for rows of equal length.

    Args:
        config: the decoder's sizes.
        rows: B.
        capacity: tokens per row at most, padding included.
        dtype: of keys and values.
        devices: one per layer.
        heads: key-value heads that are computed here; None for all of the config's.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        heads: int | None = None,
    ) -> None:
        super().__init__(config.sliding_window)
        shape = (rows, config.num_key_value_heads if heads is None else heads, capacity, config.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self._length = 0
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Tokens stored in every row."""
        return self._length

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new tokens of one layer behind the others; returns views of all, (B, G, S, K)."""
        end = self._length + k_BGTK.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self._length : end] = k_BGTK
        values[:, :, self._length : end] = v_BGTK
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Counts the tokens that every layer has appended."""
        self._length += tokens

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on."""
        assert 0 <= length <= self._length, f"cannot truncate {self._length} tokens to {length}"
        self._length = length

    def select(self, rows_B: Tensor) -> None:
        """Makes new row i a copy of old row `rows_B[i]`; the number of rows may change."""
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                rows = rows_B.to(buffer.device)
                if len(rows) == len(buffer):
                    buffer[:, :, : self._length] = buffer[rows, :, : self._length]
                else:
                    fresh = buffer.new_empty((len(rows), *buffer.shape[1:]))
                    fresh[:, :, : self._length] = buffer[rows, :, : self._length]
                    buffers[layer] = fresh
