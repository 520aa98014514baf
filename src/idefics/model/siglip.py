"""SigLIP (arXiv 2303.15343) on images of any size and shape (NaViT, arXiv 2307.06304), packed without padding.

Letters: P patches of all images together, I = C * patch * patch values of one patch, D hidden size, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.config import VisionConfig
from idefics.model.layers.attention import Backend, segmented_attention
from idefics.model.layers.mlp import MLP

__all__ = ["PatchEmbedding", "SiglipTower", "patch_position_ids", "patchify"]


def patchify(image_CHW: Tensor, *, patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Cuts an image into whole patches, row by row; what does not fill a patch at the right and bottom is dropped.

    Returns:
        Patches (h * w, C * patch * patch) and the grid (h, w).
    """
    channels, height, width = image_CHW.shape
    h, w = height // patch, width // patch
    grid = image_CHW[:, : h * patch, : w * patch].reshape(channels, h, patch, w, patch)
    return grid.permute(1, 3, 0, 2, 4).reshape(h * w, channels * patch * patch), (h, w)


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


class PatchEmbedding(nn.Module):
    """The published convolution (kernel == stride == patch), computed as one product over patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.num_channels, config.patch_size, config.patch_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, patches_PI: Tensor) -> Tensor:
        """Embeds patches (P, I) to (P, D)."""
        return F.linear(patches_PI, self.weight.flatten(1), self.bias)


class SiglipEmbeddings(nn.Module):
    """Patches and where they are."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)
        self.side = config.patches_per_side

    def forward(self, patches_PI: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Embeds packed patches (P, I) of images with these grids to (P, D)."""
        positions_P = torch.cat([patch_position_ids(h, w, side=self.side) for h, w in grids])
        embedded: Tensor = self.patch_embedding(patches_PI)
        placed: Tensor = embedded + self.position_embedding(positions_P.to(patches_PI.device))
        return placed


class SiglipAttention(nn.Module):
    """Full attention within each image."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        size = config.hidden_size
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.heads = config.num_attention_heads
        self.backend = backend

    def forward(self, x_PD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Maps packed patches (P, D) to (P, D); `lengths` are the images' patch counts."""
        q, k, v = (proj(x_PD).view(len(x_PD), self.heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out_PHK = segmented_attention(q, k, v, q_lengths=lengths, k_lengths=lengths, backend=self.backend)
        out: Tensor = self.out_proj(out_PHK.flatten(1))
        return out


class SiglipLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config, backend)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, activation=config.hidden_act)

    def forward(self, x_PD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Maps packed patches (P, D) to (P, D)."""
        x_PD = x_PD + self.self_attn(self.layer_norm1(x_PD), lengths)
        out: Tensor = x_PD + self.mlp(self.layer_norm2(x_PD))
        return out


class SiglipEncoder(nn.Module):
    """The stack of layers (a module of its own because the published names have this level)."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SiglipLayer(config, backend) for _ in range(config.num_hidden_layers))


class SiglipTower(nn.Module):
    """The vision tower: packed patches in, packed features out."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = SiglipEncoder(config, backend)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches_PI: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Encodes packed patches (P, I) of images with these grids to features (P, D); images do not see each other."""
        lengths = [h * w for h, w in grids]
        x_PD = self.embeddings(patches_PI, grids)
        for layer in self.encoder.layers:
            x_PD = layer(x_PD, lengths)
        out: Tensor = self.post_layernorm(x_PD)
        return out
