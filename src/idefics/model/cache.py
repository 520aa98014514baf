"""What a decoder may ask of a cache, and what all caches of rows of equal length have in common.

Caches that keep anything live in `engine/`. Letters: B rows, H query heads, G key-value heads, T new tokens, S all tokens so
far, K head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from idefics.model.layers.attention import Backend, attention, causal_mask

__all__ = ["KVCache", "NoCache", "RowCache"]


class KVCache(Protocol):
    """Keys and values of the tokens seen so far, per layer, passed to the decoder as an argument.

    A pass is `start`, then `attend` once per layer, then `advance`.
    """

    def start(self, tokens: int, key_mask_BS: Tensor | None, device: torch.device) -> None:
        """Told that a pass over so many new tokens per row begins; `key_mask_BS` is False for padding, if there is any."""
        ...

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, *, backend: Backend) -> Tensor:
        """Keeps the new tokens' keys and values of one layer, and lets each new token look at what it may: (B, H, T, K)."""
        ...

    def advance(self, tokens: int) -> None:
        """Called once all layers have attended: the new tokens now belong to the past."""
        ...


class RowCache(ABC):
    """A cache of rows of equal length, padding included.

    Args:
        window: keys that a token sees at most, itself included; None for no limit.
    """

    def __init__(self, window: int | None) -> None:
        self.window = window
        self._mask_BTS: Tensor | None = None

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens kept in every row."""

    @abstractmethod
    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the new tokens' keys and values of one layer; returns all of that layer's, (B, G, S, K) each."""

    @abstractmethod
    def advance(self, tokens: int) -> None:
        """See `KVCache`."""

    def start(self, tokens: int, key_mask_BS: Tensor | None, device: torch.device) -> None:
        """See `KVCache`."""
        self._mask_BTS = causal_mask(
            queries=tokens, past=self.length, window=self.window, key_mask_BS=key_mask_BS, device=device
        )

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, *, backend: Backend) -> Tensor:
        """See `KVCache`."""
        mask_BTS = self._mask_BTS
        if mask_BTS is not None and mask_BTS.device != q_BHTK.device:
            self._mask_BTS = mask_BTS = mask_BTS.to(q_BHTK.device)  # layers may lie on several devices, in order
        keys, values = self.append(layer, k_BGTK, v_BGTK)
        causal = mask_BTS is None and q_BHTK.shape[2] > 1
        return attention(q_BHTK, keys, values, mask_BTS=mask_BTS, causal=causal, backend=backend)


class NoCache(RowCache):
    """Nothing came before, and nothing is kept: training, and whole prompts at once."""

    @property
    def length(self) -> int:
        """Always 0."""
        return 0

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The new tokens' own."""
        return k_BGTK, v_BGTK

    def advance(self, tokens: int) -> None:
        """Nothing is kept."""
