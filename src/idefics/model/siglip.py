"""SigLIP (arXiv 2303.15343) on images of any size and shape (NaViT, arXiv 2307.06304), packed without padding.

Letters: P patches of all images together, I = C * patch * patch values of one patch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from idefics.config import VisionConfig
from idefics.model.layers.attention import Backend
from idefics.model.vision_encoder import PatchEmbedding, VisionEncoder

__all__ = ["SiglipTower", "patch_position_ids"]


@lru_cache(maxsize=4096)
def patch_position_ids(h: int, w: int, *, side: int) -> Tensor:
    """Rows of the position table for an h x w grid: int64 (h * w,), on the CPU.

    Patch (i, j) takes table cell (floor(i / h * side), floor(j / w * side)), as the published checkpoints were trained:
    fractions and boundaries in float32 on the CPU whatever the model's dtype. Other dtypes and other ways of writing
    i / h land in the neighbouring cell for many sizes (docs/numerics.md).
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32)
    rows, columns = (torch.bucketize(_fractions(n), boundaries, right=True) for n in (h, w))
    return (rows[:, None] * side + columns).flatten()


def _fractions(n: int) -> Tensor:
    """0, 1/n, 2/n, ... below 1; the step is rounded to float32 before torch multiplies it out."""
    step = torch.tensor(1.0, dtype=torch.float32) / n
    return torch.arange(0, 1 - 1e-6, step.item(), dtype=torch.float32)


class SiglipEmbeddings(nn.Module):
    """Patches and where they are."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config, bias=True)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)
        self.side = config.patches_per_side

    def forward(self, patches_PI: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Embeds packed patches (P, I) of images with these grids to (P, D)."""
        positions_P = torch.cat([patch_position_ids(h, w, side=self.side) for h, w in grids])
        embedded: Tensor = self.patch_embedding(patches_PI)
        placed: Tensor = embedded + self.position_embedding(positions_P.to(patches_PI.device))
        return placed


class SiglipTower(nn.Module):
    """The vision tower: packed patches in, packed features out."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = VisionEncoder(config, backend)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches_PI: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Encodes packed patches (P, I) of images with these grids to features (P, D); images do not see each other."""
        lengths = [h * w for h, w in grids]
        x_PD = self.embeddings(patches_PI, grids)
        for layer in self.encoder.layers:
            x_PD = layer(x_PD, lengths)
        out: Tensor = self.post_layernorm(x_PD)
        return out
