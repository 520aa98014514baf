"""A vocabulary in two tables: that of a text model, and ids added at its end, which were trained apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DecoupledEmbedding", "DecoupledLinear"]


class DecoupledEmbedding(nn.Embedding):
    """Ids below `base` in `weight`, the `added` ones after them in `additional_embedding`."""

    def __init__(self, base: int, added: int, size: int) -> None:
        super().__init__(base, size)
        self.additional_embedding = nn.Embedding(added, size) if added else None

    def forward(self, input: Tensor) -> Tensor:
        """Embeds ids (...) to (..., size)."""
        if self.additional_embedding is None:
            return F.embedding(input, self.weight)
        # Both tables are always read: to ask whether an added id is there would make a GPU wait for the answer.
        late = input >= self.num_embeddings
        known = F.embedding(input.masked_fill(late, 0), self.weight)
        added = self.additional_embedding((input - self.num_embeddings).clamp(min=0))
        return torch.where(late[..., None], added, known)


class DecoupledLinear(nn.Linear):
    """Logits of the ids below `base` from `weight`, then of the `added` ones from `additional_fc`; no biases."""

    def __init__(self, size: int, base: int, added: int) -> None:
        super().__init__(size, base, bias=False)
        self.additional_fc = nn.Linear(size, added, bias=False) if added else None

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., size) to (..., base + added)."""
        known = F.linear(input, self.weight)
        return known if self.additional_fc is None else torch.cat((known, self.additional_fc(input)), dim=-1)
