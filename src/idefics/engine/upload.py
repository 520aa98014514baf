"""Numbers from Python lists to a device, without waiting for what the device is still doing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["moved", "uploaded"]


def uploaded(
    numbers: Sequence[float] | Sequence[Sequence[int]], device: torch.device, *, dtype: torch.dtype = torch.int64
) -> Tensor:
    """A tensor on a device.

    `torch.tensor(numbers, device="cuda")` waits until the GPU has finished everything before it; from page-locked memory, which
    torch keeps until the copy is done, nobody waits.
    """
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return moved(torch.tensor(numbers, dtype=dtype), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; from page-locked memory, too."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
