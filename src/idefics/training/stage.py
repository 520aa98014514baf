"""A stretch of training: what it looks at, how fast it learns, and what a batch teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from idefics.training.schedule import Schedule

__all__ = ["Outcome", "Stage"]

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Outcome:
    """What a batch came to.

    Attributes:
        loss: what is minimised.
        parts: losses by name, for the log.
        right: task of each answer, and whether it was right, for the log.
    """

    loss: Tensor
    parts: Mapping[str, float]
    right: Iterable[tuple[str, bool]] = ()


@dataclass(frozen=True)
class Stage(Generic[BatchT]):
    """One stage of a run.

    Attributes:
        name: for the log.
        schedule: learning rate by step, and how many steps there are.
        batches: item `i` is the batch of step `i`: the same in any process, and however often a run was killed.
        learn: what a batch came to; called under autocast where the run has one.
        samples: in each batch, for the log's speed.
    """

    name: str
    schedule: Schedule
    batches: Dataset[BatchT]
    learn: Callable[[BatchT], Outcome]
    samples: int
