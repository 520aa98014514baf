"""Drawings as samples: pictures and a conversation about them, each a function of its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from idefics.data.sample import Message, Sample, Shown
from idefics.data.sources.drawings.exchanges import Exchange
from idefics.data.sources.drawings.questions import conversation
from idefics.data.sources.drawings.scene import MIN_SIDE, draw_scene
from idefics.errors import InputError

__all__ = ["DrawnSamples", "sample_of"]


class DrawnSamples:
    """Conversations about one or two fresh drawings; sample `i` is the same whoever asks for it, and when.

    Args:
        seed: of everything.
        turns: questions in each conversation.
        side: longest edge of pictures in pixels; the shortest is `MIN_SIDE`.
    """

    def __init__(self, *, seed: int, turns: int = 3, side: int = 2 * MIN_SIDE) -> None:
        if side < MIN_SIDE:
            raise InputError(f"side is {side} pixels; a drawing takes at least {MIN_SIDE}")
        self.seed = seed
        self.turns = turns
        self.side = side

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, from 0 without an end."""
        rng = np.random.default_rng([self.seed, number])
        shown = []
        for _ in range(1 + int(rng.integers(2))):
            width, height = (int(side) for side in rng.integers(MIN_SIDE, self.side + 1, 2))
            shown.append(draw_scene(rng, width=width, height=height))
        talk = conversation(rng, [drawing.scene for drawing in shown], turns=self.turns)
        return sample_of(talk, [drawing.image for drawing in shown], name=f"drawing {number} of seed {self.seed}")


def sample_of(talk: Sequence[Exchange], images: Sequence[Any], *, name: str, images_last: bool = False) -> Sample:
    """A conversation whose first question shows the images.

    Args:
        talk: questions and the answers to be learned.
        images: shown before the first question.
        name: of the sample.
        images_last: show them after the first question instead.
    """
    messages: list[Message] = []
    for number, exchange in enumerate(talk):
        shown = tuple(map(Shown, images)) if number == 0 else ()
        parts: tuple[str | Shown, ...] = (exchange.question, *shown) if images_last else (*shown, exchange.question)
        messages += [Message("user", parts), Message("assistant", (exchange.answer,), learned=True)]
    return Sample(tuple(messages), name)
