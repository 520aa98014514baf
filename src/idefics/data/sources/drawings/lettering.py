"""Printed numbers: digits set in a random face, turned a little, with the box of every digit known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from idefics.data.sources.drawings.chance import chance, pick, uniform
from idefics.data.sources.drawings.fonts import digit_box, digit_ratio, faces, font, sturdy
from idefics.data.sources.drawings.shapes import Outline

__all__ = ["MAX_TURN", "MIN_DIGIT_HEIGHT", "Lettering", "lettering"]

MIN_DIGIT_HEIGHT = 13.0
"""Least height of a digit in the finished image, in pixels."""

MAX_TURN = 6.0
"""Most degrees by which a number is turned."""

_THIN_FROM = 26.0
_SIZES = tuple(sorted({round(12 * 1.09**step) for step in range(48)}))


@dataclass(frozen=True, eq=False)
class Lettering:
    """A number ready to be painted; all lengths in canvas pixels.

    Attributes:
        mask: coverage of the strokes, mode L.
        outlines: the turned box of each digit, relative to the mask's corner.
        digit_height: height of the shortest digit, before turning.
        bold: whether the strokes are thick enough to show their colour.
    """

    mask: Image.Image
    outlines: tuple[Outline, ...]
    digit_height: float
    bold: bool


def lettering(
    rng: np.random.Generator, text: str, *, digit_height: float, max_width: float, max_height: float, scale: float
) -> Lettering:
    """Sets `text` in a random face.

    Args:
        rng: source of chance.
        text: digits.
        digit_height: wished height of the digits in finished pixels; `MIN_DIGIT_HEIGHT` is the floor.
        max_width: room in finished pixels; the digits shrink towards the floor to fit.
        max_height: likewise.
        scale: canvas pixels per finished pixel.
    """
    face = int(rng.integers(len(faces()))) if digit_height >= _THIN_FROM else pick(rng, sturdy())
    turn = uniform(rng, -MAX_TURN, MAX_TURN) if chance(rng, 0.5) else 0.0
    while True:
        letters = _set(text, face=face, turn=turn, floor=MIN_DIGIT_HEIGHT * scale, wished=digit_height * scale)
        if letters.mask.width <= max_width * scale and letters.mask.height <= max_height * scale:
            return letters
        if digit_height <= MIN_DIGIT_HEIGHT:
            return letters
        digit_height *= 0.88
        if digit_height < _THIN_FROM and faces()[face].thin:
            face = pick(rng, sturdy())


def _set(text: str, *, face: int, turn: float, floor: float, wished: float) -> Lettering:
    ems = max(wished, floor) / digit_ratio(face)
    size = min(_SIZES, key=lambda known: abs(known - ems))
    while True:
        letters = font(face, size)
        boxes = [digit_box(face, size, digit) for digit in text]
        digit_height = min(bottom - top for _, top, _, bottom in boxes)
        if digit_height >= floor:
            break
        size += 1
    left, top, right, bottom = letters.getbbox(text)
    width, height = math.ceil(right - left) + 2, math.ceil(bottom - top) + 2
    flat = Image.new("L", (width, height))
    ImageDraw.Draw(flat).text((1 - left, 1 - top), text, fill=255, font=letters)
    mask = flat.rotate(turn, Image.Resampling.BICUBIC, expand=True) if turn else flat

    angle = math.radians(turn)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    outlines = []
    for place, (x0, y0, x1, y1) in enumerate(boxes):
        pen = letters.getlength(text[: place + 1]) - letters.getlength(text[place]) + 1 - left
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        from_center = corners + np.array([pen - width / 2, 1 - top - height / 2])
        outlines.append(from_center @ rotation + np.array([mask.width / 2, mask.height / 2]))
    return Lettering(mask, tuple(outlines), float(digit_height), bold=not faces()[face].thin)
