"""Gated cross-attention (arXiv 2204.14198): how a decoder that was trained on text looks at images.

A token sees exactly one image, the last before it, or none. So nothing is masked: tokens are gathered by the image they
see and attend to that image's keys alone; tokens that see none get exactly zero.

Letters: B rows, T tokens, D decoder's width, N images, L latents per image, H heads, K head size, P gathered tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idefics.config import Idefics1Config
from idefics.model.layers.attention import Backend, segmented_attention
from idefics.model.layers.linear import Linears, SharedInput
from idefics.model.layers.mlp import GatedMLP
from idefics.model.layers.norm import RMSNorm
from idefics.model.sight import Sight

__all__ = ["CrossAttention", "Crossed", "GatedCrossAttention", "Routes", "View", "route"]


@dataclass(frozen=True, eq=False)
class Crossed(Sight):
    """What tokens can see of their images, ready to be attended to.

    Attributes:
        keys: one per gated layer, (N, L, H, K).
        values: as the keys.
        image_BT: which of the N images each token sees, or -1. One column stands for all tokens of its row.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    image_BT: Tensor


@dataclass(frozen=True, eq=False)
class Routes:
    """Which tokens attend to which image.

    Attributes:
        tokens_P: places (in B * T) of the tokens that see an image, those of one image together.
        lengths: tokens of each image that is seen at all.
        images: which images those are; None for all, in order.
    """

    tokens_P: Tensor
    lengths: Sequence[int]
    images: Tensor | None

    def to(self, device: torch.device) -> Routes:
        """The same on another device."""
        images = None if self.images is None else self.images.to(device)
        return Routes(tokens_P=self.tokens_P.to(device), lengths=self.lengths, images=images)


@dataclass(frozen=True, eq=False)
class View:
    """What one block needs of the images that tokens see.

    Attributes:
        keys_NLHK: its keys of all images.
        values_NLHK: its values.
        routes: who attends to which.
    """

    keys_NLHK: Tensor
    values_NLHK: Tensor
    routes: Routes


def route(image_BT: Tensor, *, images: int) -> Routes:
    """Gathers tokens by the image they see.

    Args:
        image_BT: from 0, -1 for none; on the CPU, or a GPU has to finish all it was given before this can be answered.
        images: N.
    """
    flat = image_BT.flatten()
    sees = (flat >= 0).nonzero().flatten()
    order = flat[sees].sort(stable=True)
    counts = torch.bincount(order.values, minlength=images).tolist()
    used = [image for image, count in enumerate(counts) if count]
    every = len(used) == images
    return Routes(
        tokens_P=sees[order.indices],
        lengths=[counts[image] for image in used],
        images=None if every else torch.tensor(used, device=flat.device),
    )


class CrossAttention(SharedInput):
    """Attention of tokens to the one image that each of them sees."""

    shared = Linears(names=("k_proj", "v_proj"), slot="joined", split="heads")
    linears = (shared, Linears(names=("q_proj",), split="heads"), Linears(names=("o_proj",), split="rows"))

    def __init__(self, config: Idefics1Config, backend: Backend) -> None:
        super().__init__()
        text, features = config.text_config, config.vision_config.hidden_size
        inner = text.num_attention_heads * text.head_dim
        self.q_proj = nn.Linear(text.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(features, inner, bias=False)
        self.v_proj = nn.Linear(features, inner, bias=False)
        self.o_proj = nn.Linear(inner, text.hidden_size, bias=False)
        if config.qk_layer_norms:
            self.q_layer_norm: nn.Module = RMSNorm(text.head_dim, eps=text.rms_norm_eps)
            self.k_layer_norm: nn.Module = RMSNorm(text.head_dim, eps=text.rms_norm_eps)
        else:
            self.q_layer_norm, self.k_layer_norm = nn.Identity(), nn.Identity()
        self.head_dim = text.head_dim
        self.backend = backend

    def project(self, latents_NLF: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, L, H, K) of images, made once for all tokens that will look at them."""
        latents_NLF = latents_NLF.to(
            next(self.parameters(), latents_NLF).device
        )  # blocks may lie on other devices than the tower
        k_NLHK, v_NLHK = (torch.unflatten(made, -1, (-1, self.head_dim)) for made in self.projections(latents_NLF))
        return self.k_layer_norm(k_NLHK), v_NLHK

    def forward(self, x_BTD: Tensor, view: View) -> Tensor:
        """Maps (B, T, D) to (B, T, D); exactly zero for tokens that see no image."""
        routes, keys_NLHK, values_NLHK = view.routes, view.keys_NLHK, view.values_NLHK
        if not len(routes.tokens_P):
            return torch.zeros_like(x_BTD)
        if routes.images is not None:
            keys_NLHK, values_NLHK = keys_NLHK[routes.images], values_NLHK[routes.images]
        q_PHK = self.q_proj(x_BTD.flatten(0, 1)[routes.tokens_P]).unflatten(-1, (-1, self.head_dim))
        out_PHK = segmented_attention(
            self.q_layer_norm(q_PHK),
            keys_NLHK.flatten(0, 1),
            values_NLHK.flatten(0, 1),
            q_lengths=routes.lengths,
            k_lengths=[keys_NLHK.shape[1]] * len(keys_NLHK),
            backend=self.backend,
        )
        out_PD: Tensor = self.o_proj(out_PHK.flatten(1))
        return torch.zeros_like(x_BTD.flatten(0, 1)).index_copy(0, routes.tokens_P, out_PD).view(x_BTD.shape)


class GatedCrossAttention(nn.Module):
    """One block: cross-attention and a gated MLP, each behind the tanh of a learned gate."""

    def __init__(self, config: Idefics1Config, backend: Backend) -> None:
        super().__init__()
        text = config.text_config
        self.cross_attn = CrossAttention(config, backend)
        self.mlp = GatedMLP(text.hidden_size, text.intermediate_size, text.hidden_size, activation=text.hidden_act)
        self.input_layernorm = RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        gate = (1, 1, text.hidden_size) if config.alpha_type == "vector" else (1,)
        self.alpha_cross_attn = nn.Parameter(torch.empty(gate))
        self.alpha_dense = nn.Parameter(torch.empty(gate))
        self.alpha_initializer = config.alpha_initializer
        self.alpha_range = config.alphas_initializer_range

    def forward(self, x_BTD: Tensor, view: View | None) -> Tensor:
        """Maps (B, T, D) to (B, T, D); without images only the MLP is left."""
        if view is not None:
            seen = self.cross_attn(self.input_layernorm(x_BTD), view)
            x_BTD = x_BTD + self.alpha_cross_attn.tanh() * seen
        out: Tensor = x_BTD + self.alpha_dense.tanh() * self.mlp(self.post_attention_layernorm(x_BTD))
        return out
