"""What a drawing shows: its facts, and which patch of it shows what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from idefics.data.sources.drawings.palette import COLORS
from idefics.data.sources.drawings.shapes import KINDS, Outline

__all__ = ["MAX_THINGS", "PATCH_COLORS", "PATCH_KINDS", "Box", "Crowd", "Drawing", "Number", "Scene", "Thing", "patch_labels"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the finished image."""

PATCH_KINDS: tuple[str, ...] = ("background", *KINDS, *"0123456789")
"""Meaning of each kind label."""

PATCH_COLORS: tuple[str, ...] = ("none", *COLORS)
"""Meaning of each colour label."""

MAX_THINGS = 6
"""Most things in one drawing."""

COVERED = 0.3
"""Share of a patch that an object must cover to give the patch its name."""


@dataclass(frozen=True)
class Thing:
    """One object: a kind of `KINDS` in a colour of `COLORS`, within its box."""

    kind: str
    color: str
    box: Box


@dataclass(frozen=True)
class Number:
    """A printed number.

    Attributes:
        text: its digits.
        color: colour of the digits, one of `COLORS`.
        boxes: one box per digit.
        height: height of its shortest digit in pixels, measured before rotation.
        plate: colour of the plate it is printed on, or None.
        bold: whether the strokes are thick enough for the colour to be told.
    """

    text: str
    color: str
    boxes: tuple[Box, ...]
    height: float
    plate: str | None
    bold: bool


@dataclass(frozen=True)
class Scene:
    """All facts about a drawing: its size in pixels, the things in it, and the number printed on it if there is one."""

    width: int
    height: int
    things: tuple[Thing, ...]
    number: Number | None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Kind and colour of each thing, then each digit and its colour."""
        digits = () if self.number is None else tuple((digit, self.number.color) for digit in self.number.text)
        return (*((thing.kind, thing.color) for thing in self.things), *digits)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where each of `names` is."""
        return (*(thing.box for thing in self.things), *(() if self.number is None else self.number.boxes))


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture with everything that is known about it.

    Attributes:
        image: RGB, of the scene's width and height.
        scene: the facts.
        outlines: one polygon per thing, then one per digit, in pixels of `image`.
    """

    image: Image.Image
    scene: Scene
    outlines: tuple[Outline, ...]

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Kind (or digit) and colour of each outline."""
        return self.scene.names

    def patch_labels(self, patch: int = 14) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Kind and colour of what covers each patch.

        An object that covers `COVERED` of a patch names it, and every thing names at least the patch that it covers
        most. A digit counts with its whole box, and may be left without a patch where there are more digits than patches.

        Args:
            patch: side of a patch in pixels; an incomplete last row or column has no labels.

        Returns:
            Kinds (indices into `PATCH_KINDS`) and colours (indices into `PATCH_COLORS`), both of shape
            (height // patch, width // patch).
        """
        return patch_labels(self.outlines, self.names, width=self.scene.width, height=self.scene.height, patch=patch)


@dataclass(frozen=True, eq=False)
class Crowd:
    """A picture full of things and digits, for a vision tower to learn its letters from: no questions, only labels.

    Attributes:
        image: RGB.
        names: kind (or digit) and colour of each object.
        outlines: one polygon per object, in pixels.
    """

    image: Image.Image
    names: tuple[tuple[str, str], ...]
    outlines: tuple[Outline, ...]

    def patch_labels(self, patch: int = 14) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Kind and colour of what covers each patch, as `Drawing.patch_labels`."""
        return patch_labels(self.outlines, self.names, width=self.image.width, height=self.image.height, patch=patch)


def patch_labels(
    outlines: Sequence[Outline], names: Sequence[tuple[str, str]], *, width: int, height: int, patch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kinds and colours, (rows, columns) each, of what covers each patch; `names` are those of the outlines."""
    owners = _owners(outlines, width=width, height=height, patch=patch).reshape(height // patch, width // patch)
    kinds = [0, *(PATCH_KINDS.index(kind) for kind, _ in names)]
    colors = [0, *(PATCH_COLORS.index(color) for _, color in names)]
    return np.array(kinds, dtype=np.int64)[owners], np.array(colors, dtype=np.int64)[owners]


def _owners(outlines: Sequence[Outline], *, width: int, height: int, patch: int) -> NDArray[np.int64]:
    """For each patch, row by row, 1 + the index of the outline that names it, or 0."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for index, points in enumerate(outlines):
        draw.polygon(points.ravel().tolist(), fill=index + 1)
    rows, columns = height // patch, width // patch
    pixels = np.asarray(canvas)[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch)
    places = np.arange(rows * columns).reshape(rows, 1, columns, 1) * (len(outlines) + 1)
    counts = np.bincount((pixels + places).ravel(), minlength=rows * columns * (len(outlines) + 1))
    covered = counts.reshape(rows * columns, len(outlines) + 1)[:, 1:]

    best = covered.argmax(axis=1)
    owners = np.where(covered.max(axis=1) >= COVERED * patch * patch, best + 1, 0)
    # Objects that can show least of themselves choose first, and take no other object's last patch.
    for index in np.argsort(covered.max(axis=0), kind="stable"):
        if (owners == index + 1).any():
            continue
        for place in np.argsort(-covered[:, index], kind="stable"):
            if covered[place, index] == 0:
                break
            if owners[place] == 0 or np.count_nonzero(owners == owners[place]) > 1:
                owners[place] = index + 1
                break
    return owners
