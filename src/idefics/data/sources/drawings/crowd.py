"""Draws crowds: rows of things and printed digits, small and large, as many as fit."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from idefics.data.sources.drawings.chance import chance, pick, shuffled, uniform
from idefics.data.sources.drawings.facts import Crowd
from idefics.data.sources.drawings.invent import random_number
from idefics.data.sources.drawings.lettering import MIN_DIGIT_HEIGHT, lettering
from idefics.data.sources.drawings.palette import COLORS, Backdrop, backdrop, shade
from idefics.data.sources.drawings.placing import MIN_THING
from idefics.data.sources.drawings.scene import wear
from idefics.data.sources.drawings.shapes import KINDS, Outline, outline

__all__ = ["draw_crowd"]

_GAP = 3.0
_INKS = 3
_LIGHTNESS = 30.0


def draw_crowd(rng: np.random.Generator, *, width: int, height: int) -> Crowd:
    """Fills a picture with rows of objects in three colours; the same state of `rng` gives the same picture.

    Args:
        rng: source of chance.
        width: pixels.
        height: pixels.
    """
    scenery: Backdrop | None = None
    while scenery is None:
        inks = {color: shade(rng, color) for color in shuffled(rng, COLORS)[:_INKS]}
        scenery = backdrop(rng, list(inks.values()), lightness=_LIGHTNESS)
    picture = scenery.paint(width, height)
    names: list[tuple[str, str]] = []
    outlines: list[Outline] = []
    top = uniform(rng, 1, 8)
    while top + MIN_THING < height:
        tall = min(uniform(rng, MIN_THING, 64), height - top - 1)
        left = uniform(rng, 1, 8)
        while left + MIN_THING < width:
            color = pick(rng, list(inks))
            room = width - left - 1
            if chance(rng, 0.5):
                left += _print(rng, picture, names, outlines, inks[color], color, left=left, top=top, tall=tall, room=room)
            else:
                size = min(tall * uniform(rng, 0.7, 1.0), room)
                kind = pick(rng, KINDS)
                points = outline(kind, turn=uniform(rng, -1, 1)) * max(size, MIN_THING)
                wide, high = points.max(axis=0).tolist()
                points = points + np.array([left, top + rng.random() * max(0.0, tall - high)])
                ImageDraw.Draw(picture).polygon(points.ravel().tolist(), inks[color])
                names.append((kind, color))
                outlines.append(np.asarray(points))
                left += wide
            left += _GAP + uniform(rng, 0, 12)
        top += tall + _GAP
    return Crowd(wear(rng, picture), tuple(names), tuple(outlines))


def _print(
    rng: np.random.Generator,
    picture: Image.Image,
    names: list[tuple[str, str]],
    outlines: list[Outline],
    ink: tuple[int, int, int],
    color: str,
    *,
    left: float,
    top: float,
    tall: float,
    room: float,
) -> float:
    """Prints a number at a place if it fits there; returns the width it took."""
    wished = max(MIN_DIGIT_HEIGHT, tall * uniform(rng, 0.7, 1.0))
    text = random_number(rng, 3)
    letters = lettering(rng, text, digit_height=wished, max_width=room, max_height=tall + 2, scale=1.0)
    if letters.mask.width > room or letters.mask.height > tall + 4:
        return MIN_THING
    corner = (round(left), round(top))
    picture.paste(ink, corner, letters.mask)
    for digit, points in zip(text, letters.outlines, strict=True):
        names.append((digit, color))
        outlines.append(points + np.array(corner))
    return float(letters.mask.width)
