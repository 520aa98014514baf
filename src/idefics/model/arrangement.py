"""What was done to a model from outside, and what it cannot do any more.

Whoever packs, divides, or replaces parts of a model says so here (`VisionLanguageModel.arrangements`); nobody looks at
parameters to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from idefics.errors import OptionError

__all__ = ["Ability", "Arrangement", "Kind"]

Kind = Literal["packed", "divided", "quantised", "adapted"]
Ability = Literal["trained", "saved", "copied", "packed", "divided"]


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One thing that was done to a whole model.

    Attributes:
        kind: what the model is by it; a plain model has no arrangement.
        cannot: what can no longer be done with it.
        remedy: what to do instead.
        places: the dtypes and devices at which it must stay, of weights that nothing can move; empty where it may move.
        processes: over which every layer is divided.
    """

    kind: Kind
    cannot: frozenset[Ability]
    remedy: str
    places: frozenset[tuple[torch.dtype, torch.device]] = frozenset()
    processes: int = 1

    def refusal(self, what: str) -> str:
        """One sentence for everything that cannot be done, such as `"trained"`."""
        return f"a {self.kind} model cannot be {what}; {self.remedy}"

    def check_stays(
        self, fn: Callable[[Tensor], Tensor], places: Iterable[tuple[torch.dtype, torch.device]] | None = None
    ) -> None:
        """Refuses what would move weights that cannot be moved, before anything has moved.

        Args:
            fn: what `nn.Module.to` and its kind would do to every parameter.
            places: of the weights; None for all of the arrangement.

        Raises:
            OptionError: it would.
        """
        for dtype, device in self.places if places is None else places:
            made = fn(torch.empty(1, dtype=dtype, device=device))
            if (made.device, made.dtype) != (device, dtype):
                raise OptionError(self.refusal(f"moved to {made.device} as {made.dtype}"))
