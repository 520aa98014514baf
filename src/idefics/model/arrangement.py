"""What was done to a model from outside, and what it cannot do any more.

Whoever packs, divides, or replaces parts of a model says so here (`VisionLanguageModel.arrangements`); nobody looks at
parameters to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from idefics.errors import OptionError

__all__ = ["Ability", "Arrangement", "Immovable", "Kind", "check_stays"]

Kind = Literal["packed", "divided", "quantised", "adapted"]
Ability = Literal["trained", "saved", "copied", "packed", "divided"]


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One thing that was done to a whole model.

    Attributes:
        kind: what the model is by it; a plain model has no arrangement.
        cannot: what can no longer be done with it.
        remedy: what to do instead.
        processes: over which every layer is divided.
    """

    kind: Kind
    cannot: frozenset[Ability]
    remedy: str
    processes: int = 1

    def refusal(self, what: str) -> str:
        """One sentence for everything that cannot be done, such as `"trained"`."""
        return f"a {self.kind} model cannot be {what}; {self.remedy}"


class Immovable(nn.Module):
    """A module whose weights stay in the dtype and on the device that they are in.

    Attributes:
        arrangement: what a model is that holds it, in whose words a move is refused.
    """

    arrangement: ClassVar[Arrangement]

    @property
    def places(self) -> set[tuple[torch.dtype, torch.device]]:
        """Dtypes and devices of what it holds."""
        return {(tensor.dtype, tensor.device) for tensor in self.buffers()}


def check_stays(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Refuses what would move weights that cannot be moved, before any part of a model has moved.

    Args:
        model: or a part of it.
        fn: what `nn.Module.to` and its kind would do to every parameter.

    Raises:
        OptionError: it would.
    """
    immovable = [module for module in model.modules() if isinstance(module, Immovable)]
    for arrangement, dtype, device in {(module.arrangement, *place) for module in immovable for place in module.places}:
        made = fn(torch.empty(1, dtype=dtype, device=device))
        if (made.device, made.dtype) != (device, dtype):
            raise OptionError(arrangement.refusal(f"moved to {made.device} as {made.dtype}"))
