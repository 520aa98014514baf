"""Random weights: where training from scratch begins, and what makes a checkpoint of any size for tests."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor, nn

from idefics.linears.sites import sites
from idefics.model.gated_cross_attention import GatedCrossAttention
from idefics.model.layers.norm import RMSNorm
from idefics.model.vision_encoder import PatchEmbedding

__all__ = ["STD", "Start", "initialize", "starts"]

Kind = Literal["ones", "zeros", "normal", "latents"]
GATES: dict[str, Kind] = {"zeros": "zeros", "ones": "ones"}  # any other begins at random

STD = 0.02
"""Standard deviation of weights, unless told otherwise."""


@dataclass(frozen=True)
class Start:
    """How one parameter begins.

    Attributes:
        module: name of the module that owns it, or of a gate; seeds its generator.
        kind: `"ones"`, `"zeros"`, normal with the asked deviation, or normal with deviation 1 (latents, so that no two
            of them start alike).
        std: deviation that its config asks for; None where nobody asked.
    """

    module: str
    kind: Kind
    std: float | None = None

    def fill(self, parameter: Tensor, *, seed: int, std: float = STD) -> None:
        """Fills a tensor in place; same seed, shape and dtype, same values, whatever else the model holds."""
        if self.kind in ("ones", "zeros"):
            parameter.fill_(float(self.kind == "ones"))
            return
        # A generator per tensor: a checkpoint's first layers do not depend on how many follow.
        mixed = int.from_bytes(blake2b(f"{seed} {self.module}".encode(), digest_size=8).digest(), "little") >> 1
        generator = torch.Generator(device=parameter.device).manual_seed(mixed)
        asked = std if self.std is None else self.std
        parameter.normal_(0.0, asked if self.kind == "normal" else 1.0, generator=generator)


def starts(model: nn.Module) -> dict[str, Start]:
    """How every parameter begins, by name; of a tied one, the last name counts.

    Raises:
        TypeError: a module owns parameters and is of a kind that has no rule here.
    """
    found: dict[str, Start] = {}
    linear = {key.rpartition(".")[0] for site in sites(model) for key in site.parameters}
    for name, module in sorted(model.named_modules()):
        own = dict(module.named_parameters(recurse=False))
        kinds: dict[str, Kind] = {}
        if isinstance(module, nn.LayerNorm | RMSNorm):
            kinds = {"weight": "ones", "bias": "zeros"}
        elif name in linear or isinstance(module, nn.Embedding | PatchEmbedding):
            kinds = {"weight": "normal", "bias": "zeros"}
        elif isinstance(module, GatedCrossAttention):
            gate = GATES.get(module.alpha_initializer, "normal")
            found.update({f"{name}.{gates}": Start(f"{name}.{gates}", gate, module.alpha_range) for gates in own})
            continue
        elif set(own) == {"latents"} or set(own) == {"class_embedding"}:
            kinds = dict.fromkeys(own, "latents")
        if not set(own) <= set(kinds):
            raise TypeError(f"no rule for the parameters {sorted(own)} of {type(module).__name__} {name!r}")
        found.update({f"{name}.{attribute}".lstrip("."): Start(name, kinds[attribute]) for attribute in own})
    return found


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int, std: float = STD) -> None:
    """Fills every parameter in place: normal weights, zero biases, unit norms; same seed and dtype, same weights.

    Args:
        model: any model of `idefics.model`, on any device.
        seed: of all generators, one per tensor.
        std: standard deviation of the weights.

    Raises:
        TypeError: a module owns parameters and is of a kind that has no rule here.
    """
    for name, start in starts(model).items():
        start.fill(model.get_parameter(name), seed=seed, std=std)
