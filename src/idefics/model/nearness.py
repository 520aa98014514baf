"""How near two computations of the same numbers are, and how far apart two right ones may lie.

Letters: T positions, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idefics.config import Config

__all__ = ["disagreements", "distance", "tolerance"]


def tolerance(config: Config, dtype: torch.dtype) -> float:
    """How far two correct ways of computing the same numbers may lie apart, relative to their root mean square.

    A layer adds to the residual stream twice, and each sum is rounded to the dtype: off by at most eps / 2. Roundings
    that are independent grow with the root of their number, so the allowance is `factor * eps * sqrt(layers)`, with the
    layers of vision tower, resampler and decoder together. The factor covers what happens within a layer and that the
    worst of many positions is judged. In 16-bit dtypes sums of products are accumulated in float32, so only what is
    stored is rounded: factor 2. In float32 the accumulation rounds too, over thousands of terms in an order that the
    shape of a batch decides: factor 64, which is still far below what any wrong mask or position does.

    >>> from idefics.config.presets import preset
    >>> f"{tolerance(preset('idefics2-8b'), torch.float32):.1e} {tolerance(preset('idefics2-8b'), torch.bfloat16):.2f}"
    '6.0e-05 0.12'
    """
    factor = 64 if dtype == torch.float32 else 2
    return factor * torch.finfo(dtype).eps * math.sqrt(config.depth)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest root-mean-square difference over vectors (the last dimension), relative to all of `expected`.

    The worst vector counts, so that one wrong position among hundreds is seen. NaN anywhere gives infinity: nothing
    that holds NaN is near anything.

    >>> distance(torch.tensor([[1.0, 1.0], [1.0, 1.5]]), torch.ones(2, 2))
    0.3535533905932738
    """
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    # To the CPU, in float32: vectors may come from several devices, and 16-bit differences would be rounded again.
    expected, found = expected.detach().float().cpu(), found.detach().float().cpu()
    worst = float((found - expected).square().mean(-1).max()) ** 0.5
    scale = float(expected.square().mean()) ** 0.5
    if not math.isfinite(worst) or not math.isfinite(scale):
        return math.inf
    return worst / scale if scale else (0.0 if worst == 0 else math.inf)


def disagreements(found_TV: Tensor, expected_TV: Tensor, *, allowed: float) -> int:
    """Positions whose likeliest token differs although the expected logits tell the two tokens clearly apart.

    Two tokens tie where their expected logits differ by no more than twice the allowance in logits: each may be off by
    it, in opposite directions.
    """
    found_TV, expected_TV = found_TV.detach().float().cpu(), expected_TV.detach().float().cpu()
    mine, theirs = found_TV.argmax(-1, keepdim=True), expected_TV.argmax(-1, keepdim=True)
    gaps = expected_TV.gather(-1, theirs) - expected_TV.gather(-1, mine)
    slack = 2 * allowed * float(expected_TV.square().mean()) ** 0.5
    return int((~(gaps <= slack)).sum())
