"""Where things stand: random places for outlines, apart from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from idefics.data.sources.drawings.chance import chance, uniform
from idefics.data.sources.drawings.facts import Box
from idefics.data.sources.drawings.shapes import Outline, outline

__all__ = ["MIN_THING", "arrange", "box_of", "place_beside"]

MIN_THING = 18.0
"""Least length of a thing's longer side in pixels."""

_MARGIN = 2.0
_GAP = 3.0


def box_of(points: Outline) -> Box:
    """The upright box around an outline."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _clear(box: Box, others: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    return all(
        right + _GAP <= other[0] or other[2] + _GAP <= left or bottom + _GAP <= other[1] or other[3] + _GAP <= top
        for other in others
    )


def _place(
    rng: np.random.Generator, kind: str, size: float, taken: Sequence[Box], *, width: int, height: int, tries: int
) -> Outline | None:
    """The outline of a thing at a random free place, or None where `tries` places were taken."""
    points = outline(kind, turn=uniform(rng, -1, 1)) * size
    wide, tall = points.max(axis=0).tolist()
    for across, down in rng.random((tries, 2)).tolist():
        x = _MARGIN + across * (width - wide - 2 * _MARGIN)
        y = _MARGIN + down * (height - tall - 2 * _MARGIN)
        if _clear((x, y, x + wide, y + tall), taken):
            return np.asarray(points + np.array([x, y]))
    return None


def arrange(rng: np.random.Generator, kinds: Sequence[str], *, width: int, height: int) -> tuple[Outline, ...]:
    """Places all things apart from each other, with a random spread of sizes; the largest size shrinks until all fit."""
    most = 0.7 * min(width, height)
    if len(kinds) > 1:
        most = min(most, math.sqrt(0.5 * width * height / len(kinds)))
    alike = uniform(rng, MIN_THING, most) if chance(rng, 0.3) else None
    while True:
        sizes = [min(alike, most) if alike else uniform(rng, MIN_THING, most) for _ in kinds]
        placed: list[Outline | None] = [None] * len(kinds)
        taken: list[Box] = []
        for index in sorted(range(len(kinds)), key=lambda i: -sizes[i]):
            points = _place(rng, kinds[index], sizes[index], taken, width=width, height=height, tries=16)
            if points is None:
                break
            placed[index] = points
            taken.append(box_of(points))
        complete = tuple(points for points in placed if points is not None)
        if len(complete) == len(kinds):
            return complete
        most = max(MIN_THING, 0.88 * most)


def place_beside(rng: np.random.Generator, kind: str, taken: Box, *, width: int, height: int) -> Outline | None:
    """A thing next to a number, as large as luck allows; None where there is no room even for a small one."""
    size = uniform(rng, MIN_THING, 0.5 * min(width, height))
    while True:
        points = _place(rng, kind, size, [taken], width=width, height=height, tries=8)
        if points is not None or size == MIN_THING:
            return points
        size = max(MIN_THING, 0.8 * size)
