"""The perceiver resampler (arXiv 2103.03206, 2204.14198): any number of patches in, a fixed number of latents out.

Letters: P packed patches, N images, L latents of one image, D text hidden size, H query heads, G key-value heads,
C channels of all key-value heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from idefics.config import PerceiverConfig
from idefics.model.layers.attention import Backend, segmented_attention
from idefics.model.layers.linear import Linears, ScaledInput, SharedInput
from idefics.model.layers.mlp import GatedMLP
from idefics.model.layers.norm import RMSNorm, normalised

__all__ = ["PerceiverResampler"]


class PerceiverAttention(SharedInput):
    """Latents look at their own image's patches and at each other."""

    shared = Linears(names=("k_proj", "v_proj"), slot="joined")
    linears = (shared, Linears(names=("q_proj",)), Linears(names=("o_proj",)))

    def __init__(self, config: PerceiverConfig, backend: Backend) -> None:
        super().__init__()
        size, head = config.hidden_size, config.resampler_head_dim
        self.q_proj = nn.Linear(size, config.resampler_n_heads * head, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.resampler_n_heads * head, size, bias=False)
        self.head_dim = head
        self.backend = backend

    def forward(self, latents_NLD: Tensor, context_PC: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Maps latents (N, L, D) to (N, L, D); image i owns the next `lengths[i]` rows of the context's keys and values."""
        images, latents = latents_NLD.shape[:2]
        q_PHK = self.q_proj(latents_NLD).view(images * latents, -1, self.head_dim)
        k_PGK, v_PGK = (
            _interleave(context, own, lengths).view(sum(lengths) + images * latents, -1, self.head_dim)
            for context, own in zip(context_PC, self.projections(latents_NLD), strict=True)
        )
        out_PHK = segmented_attention(
            q_PHK,
            k_PGK,
            v_PGK,
            q_lengths=[latents] * images,
            k_lengths=[length + latents for length in lengths],
            backend=self.backend,
        )
        out: Tensor = self.o_proj(out_PHK.flatten(1)).view(images, latents, -1)
        return out


def _interleave(context_PD: Tensor, latents_NLD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each image's context followed by its latents, packed."""
    if len(set(lengths)) == 1:
        context_NPD = context_PD.reshape(len(lengths), lengths[0], -1)
        return torch.cat((context_NPD, latents_NLD), dim=1).flatten(0, 1)
    pieces = torch.split(context_PD, list(lengths))
    return torch.cat([part for pair in zip(pieces, latents_NLD, strict=True) for part in pair])


class PerceiverLayer(nn.Module):
    """Attention, then a gated MLP of four times the width."""

    def __init__(self, config: PerceiverConfig, backend: Backend) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_latents_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.input_context_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.self_attn = PerceiverAttention(config, backend)
        self.post_attention_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(size, 4 * size, size, activation=config.hidden_act)

    def forward(
        self, latents_NLD: Tensor, unit_context_PD: Tensor, lengths: Sequence[int], context_PC: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Maps latents (N, L, D) to (N, L, D).

        Args:
            latents_NLD: of all images.
            unit_context_PD: of unit mean square, the norm's weight not yet applied.
            lengths: rows of the context that each image owns.
            context_PC: the context's keys and values, where they are made already.
        """
        if context_PC is None:
            context_PC = self.self_attn.projections(self.input_context_norm.weight * unit_context_PD)
        latents_NLD = latents_NLD + self.self_attn(self.input_latents_norm(latents_NLD), context_PC, lengths)
        out: Tensor = latents_NLD + self.mlp(self.post_attention_layernorm(latents_NLD))
        return out


class PerceiverResampler(ScaledInput):
    """Pools each image's packed features to the same number of latents."""

    def __init__(self, config: PerceiverConfig, backend: Backend) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.ones(config.resampler_n_latents, config.hidden_size))
        self.layers = nn.ModuleList(PerceiverLayer(config, backend) for _ in range(config.resampler_depth))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def scaled(self) -> Sequence[tuple[SharedInput, Tensor]]:
        """Every layer's keys and values of the context, and its norm's weight, in which alone the norms differ."""
        return [(layer.self_attn, layer.input_context_norm.weight) for layer in cast("list[PerceiverLayer]", list(self.layers))]

    def forward(self, context_PD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Pools packed features (P, D) of images with these patch counts to (N, L, D)."""
        latents_NLD = self.latents.to(context_PD.dtype).expand(len(lengths), -1, -1)
        # Layers' norms of the context differ in their weights alone.
        unit_context_PD = normalised(context_PD, eps=self.norm.eps)
        for layer, context_PC in zip(self.layers, self._contexts(unit_context_PD), strict=True):
            latents_NLD = layer(latents_NLD, unit_context_PD, lengths, context_PC)
        out: Tensor = self.norm(latents_NLD)
        return out

    def _contexts(self, unit_context_PD: Tensor) -> Sequence[Sequence[Tensor] | None]:
        """The context's keys and values for each layer, where one product makes those of all."""
        if self.contexts is None:
            return [None] * len(self.layers)
        made_PC = torch.split(self.contexts(unit_context_PD), self.contexts.sizes, dim=-1)
        return list(zip(made_PC[::2], made_PC[1::2], strict=True))
