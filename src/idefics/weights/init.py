"""Random weights: where training from scratch begins, and what makes a checkpoint of any size for tests."""

from __future__ import annotations

import torch
from torch import nn

from idefics.model.layers.norm import RMSNorm
from idefics.model.siglip import PatchEmbedding

__all__ = ["initialize"]


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int, std: float = 0.02) -> None:
    """Fills every parameter in place: normal weights, zero biases, unit norms; same seed and dtype, same weights.

    Args:
        model: any model of `idefics.model`, on any device.
        seed: of the generator, one for all parameters in the order of their names.
        std: standard deviation of the weights. Latents get 1, so that no two of them start alike.

    Raises:
        TypeError: a module owns parameters and is of a kind that has no rule here.
    """
    for name, module in sorted(model.named_modules()):
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if isinstance(module, nn.LayerNorm | RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, nn.Linear | nn.Embedding | PatchEmbedding):
            _normal(module.weight, seed, name, std)
        elif set(own) == {"latents"}:
            _normal(own["latents"], seed, name, 1.0)
        else:
            raise TypeError(f"no rule for the parameters {sorted(own)} of {type(module).__name__} {name!r}")
        bias = own.get("bias")
        if bias is not None:
            bias.zero_()


def _normal(parameter: torch.Tensor, seed: int, name: str, std: float) -> None:
    # A generator per tensor: a checkpoint's first layers do not depend on how many follow.
    mixed = (seed * 1_000_003 + sum(i * ord(c) for i, c in enumerate(name, 1))) % 2**63
    generator = torch.Generator(device=parameter.device).manual_seed(mixed)
    parameter.normal_(0.0, std, generator=generator)
