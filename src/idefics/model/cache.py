"""What a decoder may ask of a cache. Caches themselves live in `engine/`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["KVCache"]


class KVCache(Protocol):
    """Keys and values of the tokens seen so far, per layer, passed to the decoder as an argument.

    Letters: B rows, G key-value heads, T new tokens, S all tokens so far, K head size.
    """

    @property
    def length(self) -> int:
        """Tokens stored in every row (padding included)."""
        ...

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens' keys and values of one layer; returns all of that layer's, (B, G, S, K) each."""
        ...

    def advance(self, tokens: int) -> None:
        """Called once all layers have appended: the new tokens now belong to `length`."""
        ...
