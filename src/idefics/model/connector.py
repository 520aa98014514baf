"""From the vision tower's space to the decoder's: projection, then pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from idefics.config import Idefics2Config
from idefics.model.layers.attention import Backend
from idefics.model.layers.mlp import GatedMLP
from idefics.model.perceiver import PerceiverResampler

__all__ = ["Connector"]


class Connector(nn.Module):
    """A gated MLP to the text's hidden size (with the text's inner size), then the perceiver resampler."""

    def __init__(self, config: Idefics2Config, backend: Backend) -> None:
        super().__init__()
        text = config.text_config
        self.modality_projection = GatedMLP(
            config.vision_config.hidden_size, text.intermediate_size, text.hidden_size, activation=text.hidden_act
        )
        self.perceiver_resampler = PerceiverResampler(config.perceiver_config, backend)

    def forward(self, features_PD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Maps packed vision features (P, vision D) of images with these patch counts to latents (N, L, text D)."""
        out: Tensor = self.perceiver_resampler(self.modality_projection(features_PD), lengths)
        return out
