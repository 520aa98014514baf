"""What a task is: questions to ask, and apart from asking, a score for each answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from idefics.data.sample import Sample
from idefics.evaluation.records import Record

__all__ = ["Question", "Task"]


@dataclass(frozen=True, eq=False)
class Question:
    """A conversation of which the model says the learned messages by itself.

    Attributes:
        name: unique within the task.
        sample: images, questions and expected answers.
        labels: for each answer the rows of the table that it counts for, the broadest first; none for an answer that is asked
            for on the way only.
    """

    name: str
    sample: Sample
    labels: tuple[tuple[str, ...], ...]


class Task(Protocol):
    """Asks, and scores what was answered."""

    @property
    def name(self) -> str:
        """Of the task, as records keep it."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever questions or scores change."""
        ...

    @property
    def longest(self) -> int:
        """Most tokens of an answer."""
        ...

    def questions(self) -> Iterator[Question]:
        """All questions, made or read as they are taken."""
        ...

    def score(self, record: Record) -> float:
        """How good an answer is, from 0 to 1; needs no model and no picture."""
        ...
