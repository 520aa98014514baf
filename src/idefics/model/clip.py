"""CLIP's vision tower (arXiv 2103.00020): squares of one size, others by interpolated positions, a class token first.

Letters: N images, C x H x W pixels, P patches of one image and its class token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.config import VisionConfig
from idefics.model.layers.attention import Backend
from idefics.model.vision_encoder import PatchEmbedding, VisionEncoder, patchify

__all__ = ["ClipTower"]


class ClipEmbeddings(nn.Module):
    """A class token and patches, and where they are."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = PatchEmbedding(config, bias=False)
        self.position_embedding = nn.Embedding(config.patches_per_side**2 + 1, config.hidden_size)
        self.patch, self.side = config.patch_size, config.patches_per_side

    def forward(self, images_CHW: Sequence[Tensor]) -> Tensor:
        """Embeds images, all of one size, to (N, P, D); see `positions_for`."""
        patches = torch.stack([patchify(image, patch=self.patch)[0] for image in images_CHW])
        height, width = images_CHW[0].shape[1:]
        first = self.class_embedding.expand(len(patches), 1, -1)
        placed: Tensor = torch.cat((first, self.patch_embedding(patches)), dim=1) + self.positions_for(height, width)
        return placed

    def positions_for(self, height: int, width: int) -> Tensor:
        """Positions (P, D) of the class token and of the patches of images of so many pixels.

        For other images than squares of as many patches as the table holds they lie between those of the table, bicubic, with
        the reference's offset of a tenth of a patch (github.com/facebookresearch/dino/issues/8).
        """
        grid = (height // self.patch, width // self.patch)
        table_PD: Tensor = self.position_embedding.weight
        if grid == (self.side, self.side) and height == width:
            return table_PD
        square_1DHW = table_PD[1:].view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        wide = square_1DHW.float() if square_1DHW.dtype.itemsize < 4 else square_1DHW  # no kernel for fewer bits
        scale = [(patches + 0.1) / self.side for patches in grid]
        made_1DHW = F.interpolate(wide, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat((table_PD[:1], made_1DHW[0].flatten(1).T.to(table_PD.dtype)))


class ClipTower(nn.Module):
    """The vision tower: images of one size in, features of the class token and of every patch out."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # as the files spell it
        self.encoder = VisionEncoder(config, backend)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, images_CHW: Sequence[Tensor]) -> Tensor:
        """Encodes images to (N, P, D), the class token first, not normed: what a resampler or a decoder looks at."""
        x_NPD = self.pre_layrnorm(self.embeddings(images_CHW))
        images, length, _ = x_NPD.shape
        x_PD = x_NPD.flatten(0, 1)
        for layer in self.encoder.layers:
            x_PD = layer(x_PD, [length] * images)
        out: Tensor = x_PD.view(x_NPD.shape)
        return out

    def pooled(self, features_NPD: Tensor) -> Tensor:
        """One vector per image (N, D): the normed class token."""
        out: Tensor = self.post_layernorm(features_NPD[:, 0])
        return out
