"""The images of the self-test: drawn here, different from each other in every patch, of sizes that no patch divides."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["draw"]


def draw(width: int, height: int, *, seed: int) -> Image.Image:
    """Two colour gradients, a disc and a little noise; other seeds give other colours and places."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    across, down = x / max(width - 1, 1), y / max(height - 1, 1)
    from_, to, disc = rng.uniform(0, 255, (3, 3))
    rgb_HWC = from_ * (1 - across[..., None]) + to * down[..., None]
    centre_x, centre_y, radius = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.3)
    rgb_HWC[(across - centre_x) ** 2 + (down - centre_y) ** 2 < radius**2] = disc
    rgb_HWC += rng.normal(0, 8, rgb_HWC.shape)
    return Image.fromarray(rgb_HWC.clip(0, 255).astype(np.uint8))
