"""What both vision towers are made of: patches, and pre-norm layers that see one image each, packed without padding.

Letters: P patches of all images together, I = C * patch * patch values of one patch, D hidden size, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.config import VisionConfig
from idefics.errors import InputError
from idefics.inputs import Levels
from idefics.model.layers.attention import Backend, segmented_attention
from idefics.model.layers.linear import Linears, SharedInput
from idefics.model.layers.mlp import MLP
from idefics.model.layers.widened import pays, wide_linear

__all__ = ["PatchEmbedding", "VisionEncoder", "VisionLayer", "check_shapes", "patchify"]


def check_shapes(images_CHW: Sequence[Tensor | Levels], config: VisionConfig) -> None:
    """Refuses what is no image with the tower's channels.

    Raises:
        InputError: which one, its shape and the one due are named.
    """
    for index, image in enumerate(images_CHW):
        if len(image.shape) != 3 or image.shape[0] != config.num_channels:
            raise InputError(
                f"image {index + 1} has the shape {tuple(image.shape)}; ({config.num_channels}, height, width) is due, one "
                "tensor per image, as the processor makes them"
            )


def patchify(image_CHW: Tensor, *, patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Cuts an image into whole patches, row by row; what does not fill a patch at the right and bottom is dropped.

    Returns:
        Patches (h * w, C * patch * patch) and the grid (h, w).
    """
    channels, height, width = image_CHW.shape
    h, w = height // patch, width // patch
    grid = image_CHW[:, : h * patch, : w * patch].reshape(channels, h, patch, w, patch)
    return grid.permute(1, 3, 0, 2, 4).reshape(h * w, channels * patch * patch), (h, w)


class PatchEmbedding(nn.Module):
    """The published convolution (kernel == stride == patch), computed as one product over patches."""

    def __init__(self, config: VisionConfig, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.num_channels, config.patch_size, config.patch_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if bias else None

    def forward(self, patches_PI: Tensor) -> Tensor:
        """Embeds patches (P, I) to (P, D)."""
        product = wide_linear if pays(patches_PI) else F.linear
        return product(patches_PI, self.weight.flatten(1), self.bias)


class VisionAttention(SharedInput):
    """Full attention within each image."""

    shared = Linears(names=("q_proj", "k_proj", "v_proj"), slot="joined")
    linears = (shared, Linears(names=("out_proj",)))

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
        q, k, v = (made.view(len(x_PD), self.heads, -1) for made in self.projections(x_PD))
        out_PHK = segmented_attention(q, k, v, q_lengths=lengths, k_lengths=lengths, backend=self.backend)
        out: Tensor = self.out_proj(out_PHK.flatten(1))
        return out


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config, backend)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, activation=config.hidden_act)

    def forward(self, x_PD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Maps packed patches (P, D) to (P, D)."""
        x_PD = x_PD + self.self_attn(self.layer_norm1(x_PD), lengths)
        out: Tensor = x_PD + self.mlp(self.layer_norm2(x_PD))
        return out


class VisionEncoder(nn.Module):
    """The stack of layers (a module of its own because the published names have this level)."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config, backend) for _ in range(config.num_hidden_layers))
