"""A scheme as small as one can be, kept to prove that a scheme is one file: int8 weights with a scale per output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.linears.sites import sites
from idefics.linears.stand_in import StandIn
from idefics.model.arrangement import Arrangement
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.linear import Split

QUANTISED = Arrangement(
    kind="quantised", cannot=frozenset({"trained", "saved", "copied", "packed"}), remedy="load the 16-bit checkpoint"
)


class EightBits(StandIn):
    arrangement = QUANTISED
    q: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__([layer])
        weight = layer.get_parameter("weight")
        scale = weight.detach().float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("q", (weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.empty()

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.q.to(x.dtype)) * self.scale[:, 0].to(x.dtype)

    def weights(self) -> list[dict[str, Tensor]]:
        return [{"weight": self.q * self.scale}]

    @classmethod
    def cuts(cls, split: Split) -> Mapping[str, int | None]:
        return {"q": 1, "scale": None} if split == "rows" else {"q": 0, "scale": 0}


class Scheme:
    def replace(self, model: VisionLanguageModel, stored: Mapping[str, Tensor]) -> None:
        for site in sites(model):
            if all(f"{path}.q" in stored for path in site.paths):
                site.replace_each(EightBits)
        model.arrangements = (*model.arrangements, QUANTISED)
