"""How fast this machine can be at best: bytes read and matrices multiplied per second, measured just before they are needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from idefics.machine.arithmetic import multiplies
from idefics.machine.dtypes import dtype_name

__all__ = ["Ceilings", "ceilings", "reading", "seconds_of"]


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this machine reached just now: bytes read per second, and operations per second of matrix products by dtype."""

    bytes_per_second: float
    operations_per_second: Mapping[str, float]

    def bound(self, *, moved: float = 0.0, operations: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> float:
        """Seconds that so many bytes and operations take at best: the longer of the two."""
        return max(moved / self.bytes_per_second, operations / self.operations_per_second[dtype_name(dtype)])


def ceilings(device: torch.device | str, dtypes: Sequence[torch.dtype]) -> Ceilings:
    """Measures how fast this machine reads memory and multiplies matrices; machines that others share drift."""
    place = torch.device(device)
    size = 2048 if place.type == "cpu" else 8192
    rates = {}
    for dtype in dtypes:
        computed = torch.float32 if place.type == "cpu" and not multiplies(dtype) else dtype  # as our products are, too
        a, b = (torch.randn(size, size, device=place).to(computed) for _ in range(2))
        rates[dtype_name(dtype)] = 2 * size**3 / _least(partial(torch.matmul, a, b), place)
    numbers = torch.ones(2**26 if place.type == "cpu" else 2**29, device=place)
    return Ceilings(bytes_per_second=numbers.numel() * 4 / _least(numbers.sum, place), operations_per_second=rates)


def reading(memory: Sequence[torch.Tensor]) -> float:
    """Bytes per second that this process reads of some memory of its own, where it lies; processes differ.

    Args:
        memory: bytes (uint8), each a whole number of float32.
    """
    numbers = [each.view(torch.float32) for each in memory]
    device = numbers[0].device
    return sum(each.nbytes for each in memory) / _least(lambda: [each.sum() for each in numbers], device)


def _least(run: Callable[[], Any], device: torch.device) -> float:
    return min(seconds_of(run, device) for _ in range(5))


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """How long something takes, what it started on a device included."""
    _settle(device)
    began = time.perf_counter()
    run()
    _settle(device)
    return time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
