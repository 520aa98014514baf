"""One exchange of a conversation, and what the next may call `it`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idefics.data.sources.drawings.chance import pick
from idefics.data.sources.drawings.facts import Number, Scene, Thing

__all__ = ["TASKS", "Exchange", "Mention", "picture_of", "where"]

TASKS = ("color", "shape", "thing", "count", "number", "which", "yesno", "describe", "chat")
"""Every `Exchange.task`."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; `task` is one of `TASKS`."""

    task: str
    question: str
    answer: str


@dataclass(frozen=True)
class Mention:
    """An exchange, and the one thing or number it was about.

    Attributes:
        exchange: question and answer.
        it: what `it` means in the next question, or None where that would be ambiguous.
        open: what has not been said about `it` yet: `"color"`, `"shape"`.
    """

    exchange: Exchange
    it: Thing | Number | None = None
    open: tuple[str, ...] = ()


_ORDINALS = ("first", "second")
_PICTURES = ("image", "image", "picture", "photo")


def where(rng: np.random.Generator, scenes: Sequence[Scene], index: int) -> str:
    """The end of a question that says which image is meant, if it needs saying."""
    if len(scenes) == 1:
        return pick(rng, ("", "", "", " here", " in this image", " in the image", " in the picture"))
    return f" in the {_ORDINALS[index]} {pick(rng, _PICTURES)}"


def picture_of(rng: np.random.Generator, scenes: Sequence[Scene], index: int) -> str:
    """A name for one of the images."""
    if len(scenes) == 1:
        return pick(rng, ("the image", "this image", "the picture", "this picture"))
    return f"the {_ORDINALS[index]} {pick(rng, _PICTURES)}"
