"""What the embedded model is asked: one question each about fresh drawings, and later turns of conversations.

Sizes are arbitrary, and half of the largest pictures are enlarged two- or threefold, so that a processor has to shrink them as
it does a photo. Answers must be right to the letter. Second and third turns of conversations count as `later turns`: in these
the model reads its own earlier answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from idefics.data.sources.drawings import (
    Drawing,
    Exchange,
    Motif,
    conversation,
    draw_scene,
    questions_of,
    sample_of,
    tasks_of,
)
from idefics.errors import OptionError
from idefics.evaluation.metrics.exact_match import exact_match
from idefics.evaluation.records import Record
from idefics.evaluation.task import Question

__all__ = ["KINDS", "LATER", "LONGEST", "SHORTEST", "TEST_SEED", "DrawingsTask", "asked_about", "picture"]

KINDS = ("thing", "color", "shape", "count", "number", "which", "yesno", "describe")
"""Questions, each kind a row of the table."""

LATER = "later turns"

SHORTEST, LONGEST = 84, 168
"""Edges of pictures in pixels, as the embedded model sees them."""

TEST_SEED = 7_777_777
"""Part of every seed here, of none in training."""

_MOTIFS: dict[str, Motif] = {"thing": "thing", "color": "thing", "shape": "thing", "count": "things", "number": "number"}


@dataclass(frozen=True)
class DrawingsTask:
    """Questions of every kind about drawings that no training has seen.

    Attributes:
        each: questions of each kind, and conversations.
        seed: of all of them.

    Raises:
        OptionError: `each` is below 1.
    """

    each: int = 400
    seed: int = 0
    name: ClassVar[str] = "drawings"
    version: ClassVar[int] = 1
    longest: ClassVar[int] = 32

    def __post_init__(self) -> None:
        if self.each < 1:
            raise OptionError(f"each = {self.each}; ask at least 1 question of each kind")

    def questions(self) -> Iterator[Question]:
        """Kind by kind, then the conversations."""
        rng = np.random.default_rng([self.seed, TEST_SEED])
        for kind in KINDS:
            for number in range(self.each):
                pictures, exchange = asked_about(rng, kind)
                yield _question(f"{kind} {number}", pictures, [exchange], ((kind, *_narrower(exchange)),))
        rows = [[picture(rng, None) for _ in range(1 + (number % 3 == 0))] for number in range(self.each)]
        talks = [conversation(rng, [drawing.scene for drawing, _ in row], turns=3) for row in rows]
        for number, (row, talk) in enumerate(zip(rows, talks, strict=True)):
            yield _question(f"{LATER} {number}", [shown for _, shown in row], talk, ((), (LATER,), (LATER,)))

    def score(self, record: Record) -> float:
        """1 for an answer that is right to the letter, else 0."""
        return exact_match(record.answer, record.expected)


def picture(rng: np.random.Generator, motif: Motif | None) -> tuple[Drawing, Image.Image]:
    """A drawing of any size and, as often as not where it is as large as can be, an enlarged picture of it."""
    width, height = (int(side) for side in rng.integers(SHORTEST, LONGEST + 1, 2))
    drawing = draw_scene(rng, width=width, height=height, subject=motif)
    factor = int(rng.integers(2, 4)) if rng.random() < 0.5 and max(width, height) == LONGEST else 1
    shown = drawing.image.resize((width * factor, height * factor), Image.Resampling.BICUBIC) if factor > 1 else drawing.image
    return drawing, shown


def asked_about(rng: np.random.Generator, kind: str) -> tuple[list[Image.Image], Exchange]:
    """Pictures that allow a question of a kind, and the question; counts and lengths of numbers come equally often."""
    while True:
        shown = [picture(rng, _MOTIFS.get(kind)) for _ in range(2 if kind == "which" else 1)]
        scenes = [drawing.scene for drawing, _ in shown]
        if kind in tasks_of(scenes):
            return [image for _, image in shown], questions_of(kind, rng, scenes)


def _narrower(exchange: Exchange) -> tuple[str, ...]:
    """The row of the table for answers like this one: by count, and by the number's length."""
    by = {"count": exchange.answer, "number": str(len(exchange.answer))}.get(exchange.task)
    return () if by is None else (f"{exchange.task} {by}",)


def _question(name: str, pictures: list[Image.Image], talk: list[Exchange], labels: tuple[tuple[str, ...], ...]) -> Question:
    return Question(name, sample_of(talk, pictures, name=name), labels)
