"""How fast a stage learns, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from idefics.errors import OptionError

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning rate that rises linearly, stays, and falls linearly to almost nothing.

    Attributes:
        peak: the highest rate.
        steps: how many the stage has.
        warmup: first steps, in which the rate rises.
        decay: last steps, in which it falls.

    Raises:
        OptionError: a number of steps is below 1, or the peak is no positive number.

    >>> [round(Schedule(peak=1.0, steps=6, warmup=2, decay=3).rate(step), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.67, 0.33]
    """

    peak: float
    steps: int
    warmup: int = 1
    decay: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "warmup", "decay"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} = {getattr(self, name)} of a schedule; give at least 1")
        if not 0 < self.peak < float("inf"):
            raise OptionError(f"peak = {self.peak} of a schedule; give a positive number")

    def rate(self, step: int) -> float:
        """The rate of a step, from 0."""
        return self.peak * min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.decay)
