"""Facts without a picture: what a drawing might show, and where, at a hundredth of the cost of painting it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from idefics.data.sources.drawings.chance import chance, pick, pick_weighted, shuffled, uniform
from idefics.data.sources.drawings.facts import MAX_THINGS, Box, Number, Scene, Thing
from idefics.data.sources.drawings.lettering import MAX_TURN, MIN_DIGIT_HEIGHT
from idefics.data.sources.drawings.palette import COLORS
from idefics.data.sources.drawings.placing import arrange, box_of, place_beside
from idefics.data.sources.drawings.shapes import KINDS

__all__ = ["MOTIFS", "Motif", "invent_scene", "random_number", "random_things"]

Motif = Literal["thing", "things", "number"]
"""What a drawing is about."""

MOTIFS: tuple[tuple[Motif, float], ...] = (("thing", 0.25), ("things", 0.4), ("number", 0.35))
"""How often each is drawn where nobody asks for one."""


def random_number(rng: np.random.Generator, max_digits: int) -> str:
    """Digits of a number, without leading zeros; every length from 1 to `max_digits` is equally likely."""
    digits = int(rng.integers(1, max_digits + 1))
    first = int(rng.integers(0 if digits == 1 else 1, 10))
    return str(first) + "".join(str(digit) for digit in rng.integers(0, 10, size=digits - 1))


def random_things(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Kinds and colours of `count` things: all alike, from a small choice, or independent."""
    kind_choice = shuffled(rng, KINDS)[: pick_weighted(rng, ((1, 0.35), (2, 0.3), (len(KINDS), 0.35)))]
    color_choice = shuffled(rng, COLORS)[: pick_weighted(rng, ((1, 0.2), (2, 0.35), (len(COLORS), 0.45)))]
    return [(pick(rng, kind_choice), pick(rng, color_choice)) for _ in range(count)]


def invent_scene(
    rng: np.random.Generator,
    *,
    width: int,
    height: int,
    subject: Motif | None = None,
    max_digits: int = 4,
    max_things: int = MAX_THINGS,
) -> Scene:
    """The facts of a scene like those that `draw_scene` draws, unpainted; digits are upright boxes of one width.

    Args:
        rng: source of chance.
        width: pixels, at least 84.
        height: likewise.
        subject: what the scene is about; None chooses at random.
        max_digits: a number has 1 to `max_digits` digits, all lengths equally likely.
        max_things: several things are 1 to `max_things`, all counts equally likely.
    """
    chosen = subject or pick_weighted(rng, MOTIFS)
    if chosen != "number":
        looks = random_things(rng, 1 if chosen == "thing" else int(rng.integers(1, max_things + 1)))
        outlines = arrange(rng, [kind for kind, _ in looks], width=width, height=height)
        things = tuple(Thing(kind, color, box_of(points)) for (kind, color), points in zip(looks, outlines, strict=True))
        return Scene(width, height, things, None)
    joined = chance(rng, 0.3)
    number, block = _invent_number(rng, width=width, height=height, room=0.6 if joined else 0.9, max_digits=max_digits)
    kind, color = pick(rng, [kind for kind in KINDS if not (number.plate and kind == "square")]), pick(rng, COLORS)
    beside = place_beside(rng, kind, block, width=width, height=height) if joined else None
    return Scene(width, height, () if beside is None else (Thing(kind, color, box_of(beside)),), number)


def _invent_number(rng: np.random.Generator, *, width: int, height: int, room: float, max_digits: int) -> tuple[Number, Box]:
    """A number, and the box around all its digits."""
    text = random_number(rng, max_digits)
    slant = uniform(rng, 0.45, 0.75)  # width of a digit, from its height
    tallest = min(0.65 * height, room * width / len(text) / slant)
    tall = uniform(rng, MIN_DIGIT_HEIGHT, max(tallest, MIN_DIGIT_HEIGHT + 1))
    wide = slant * tall
    rise = math.tan(math.radians(uniform(rng, -MAX_TURN, MAX_TURN))) * wide if chance(rng, 0.5) else 0.0
    climb = rise * (len(text) - 1)
    left = uniform(rng, 0.5, width - len(text) * wide - 0.5)
    top = uniform(rng, 0.5, height - tall - abs(climb) - 0.5) + max(0.0, -climb)
    boxes = tuple(
        (left + place * wide, top + place * rise, left + (place + 1) * wide, top + place * rise + tall)
        for place in range(len(text))
    )
    plate = pick(rng, COLORS) if chance(rng, 0.35) else None
    block = (left, top + min(0.0, climb), left + len(text) * wide, top + max(0.0, climb) + tall)
    return Number(text, pick(rng, COLORS), boxes, tall, plate, bold=tall >= 24 and chance(rng, 0.6)), block
