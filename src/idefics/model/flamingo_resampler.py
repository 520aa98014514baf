"""Flamingo's perceiver resampler (arXiv 2204.14198), in the tower's width: layer norms, and a plain MLP with ReLU.

Letters: N images, P context vectors per image, L latents, D hidden size, H heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics.config import FlamingoConfig, VisionConfig
from idefics.model.layers.attention import Backend, attention
from idefics.model.layers.linear import Block, Linears, SharedInput

__all__ = ["FlamingoResampler"]


class FlamingoAttention(SharedInput):
    """Latents attend to the context and themselves."""

    shared = Linears(names=("k_proj", "v_proj"), slot="joined")
    linears = (shared, Linears(names=("q_proj",)), Linears(names=("output_proj",)))

    def __init__(self, size: int, config: FlamingoConfig, backend: Backend) -> None:
        super().__init__()
        inner = config.resampler_n_heads * config.resampler_head_dim
        self.context_layer_norm = nn.LayerNorm(size)
        self.latents_layer_norm = nn.LayerNorm(size)
        if config.qk_layer_norms_perceiver:
            self.q_layer_norm: nn.Module = nn.LayerNorm(config.resampler_head_dim)
            self.k_layer_norm: nn.Module = nn.LayerNorm(config.resampler_head_dim)
        else:
            self.q_layer_norm, self.k_layer_norm = nn.Identity(), nn.Identity()
        self.q_proj = nn.Linear(size, inner, bias=False)
        self.k_proj = nn.Linear(size, inner, bias=False)
        self.v_proj = nn.Linear(size, inner, bias=False)
        self.output_proj = nn.Linear(inner, size, bias=False)
        self.head_dim = config.resampler_head_dim
        self.backend = backend

    def forward(self, context_NPD: Tensor, latents_NLD: Tensor) -> Tensor:
        """Maps latents (N, L, D) to (N, L, D)."""
        latents_NLD = self.latents_layer_norm(latents_NLD)
        both = torch.cat((self.context_layer_norm(context_NPD), latents_NLD), dim=1)
        q, k, v = (
            made.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for made in (self.q_proj(latents_NLD), *self.projections(both))
        )
        out_NHLK = attention(self.q_layer_norm(q), self.k_layer_norm(k), v, mask_BTS=None, causal=False, backend=self.backend)
        out: Tensor = self.output_proj(out_NHLK.transpose(1, 2).flatten(2))
        return out


class FlamingoMLP(Block):
    """`c_proj(relu(fc(ln(x))))`, four times the width, without biases."""

    linears = (Linears(names=("fc",)), Linears(names=("c_proj",)))

    def __init__(self, size: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(size)
        self.fc = nn.Linear(size, 4 * size, bias=False)
        self.c_proj = nn.Linear(4 * size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        out: Tensor = self.c_proj(self.fc(self.ln(x)).relu())
        return out


class FlamingoResampler(nn.Module):
    """Pools each image's features to the same number of latents."""

    def __init__(self, vision: VisionConfig, config: FlamingoConfig, backend: Backend) -> None:
        super().__init__()
        size = vision.hidden_size
        self.latents = nn.Parameter(torch.empty(config.resampler_n_latents, size))
        self.blocks = nn.ModuleList(
            nn.ModuleList((FlamingoAttention(size, config, backend), FlamingoMLP(size))) for _ in range(config.resampler_depth)
        )
        self.layer_norm = nn.LayerNorm(size)

    def forward(self, context_NPD: Tensor) -> Tensor:
        """Pools features (N, P, D) to (N, L, D)."""
        latents_NLD = self.latents.expand(len(context_NPD), -1, -1)
        for block in self.blocks:
            attend, think = block.children()
            latents_NLD = latents_NLD + attend(context_NPD, latents_NLD)
            latents_NLD = latents_NLD + think(latents_NLD)
        out: Tensor = self.layer_norm(latents_NLD)
        return out
