"""Colours that a person names without hesitation, and backdrops on which they stand out."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idefics.data.sources.drawings.chance import chance, pick_weighted, uniform

__all__ = ["COLORS", "RGB", "Backdrop", "backdrop", "lab", "shade", "stands_out"]

RGB = tuple[int, int, int]

_Range = tuple[float, float]
# Hue in degrees, saturation, value. Gaps between neighbours are wide enough to survive the later change of brightness.
_RANGES: dict[str, tuple[_Range, _Range, _Range]] = {
    "red": ((-7, 5), (0.82, 1.0), (0.72, 1.0)),
    "green": ((105, 145), (0.6, 1.0), (0.45, 0.82)),
    "blue": ((212, 234), (0.7, 1.0), (0.62, 1.0)),
    "yellow": ((51, 59), (0.8, 1.0), (0.93, 1.0)),
    "orange": ((25, 33), (0.88, 1.0), (0.94, 1.0)),
    "purple": ((270, 287), (0.58, 0.9), (0.5, 0.78)),
    "pink": ((326, 345), (0.34, 0.55), (0.96, 1.0)),
    "brown": ((18, 28), (0.62, 0.82), (0.36, 0.5)),
    "black": ((0, 360), (0.0, 0.2), (0.0, 0.12)),
    "white": ((0, 360), (0.0, 0.025), (0.96, 1.0)),
    "gray": ((0, 360), (0.0, 0.05), (0.46, 0.64)),
}

COLORS: tuple[str, ...] = tuple(_RANGES)
"""Colour names; the patch label of a colour is its place here plus one."""

MIN_DISTANCE = 34.0
"""Least CIELAB distance between an object and what lies behind it."""

_FAMILIES = (  # saturation, value, weight
    (((0.0, 0.03), (0.93, 1.0)), 3.0),
    (((0.03, 0.22), (0.85, 1.0)), 3.0),
    (((0.0, 0.4), (0.04, 0.22)), 3.0),
    (((0.08, 0.35), (0.45, 0.78)), 3.0),
    (((0.35, 0.6), (0.3, 0.5)), 1.0),
)
_CANDIDATES = 12


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def shade(rng: np.random.Generator, color: str) -> RGB:
    """One of the many RGB values that `color` names."""
    hue, saturation, value = (uniform(rng, *span) for span in _RANGES[color])
    return _rgb(hue, saturation, value)


def lab(colors: Sequence[RGB]) -> NDArray[np.float64]:
    """CIELAB coordinates (D65) of sRGB colours, shape (len(colors), 3)."""
    srgb = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ
    curve = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.asarray(curve @ _LAB + np.array([-16.0, 0.0, 0.0]))


# sRGB to XYZ over the D65 white point, transposed; then the cube roots to L*, a*, b*.
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
).T / np.array([0.95047, 1.0, 1.08883])
_LAB = np.array([[0.0, 500.0, 0.0], [116.0, -500.0, 200.0], [0.0, 0.0, -200.0]])


def stands_out(front: RGB, behind: RGB, *, lightness: float = 0.0) -> bool:
    """Whether `front` is told from `behind` at a glance.

    Args:
        front: the colour of the object.
        behind: the colour around it.
        lightness: least difference of L*; thin strokes need one, because hue alone does not carry them.
    """
    front_lab, behind_lab = lab((front, behind))
    apart = bool(np.linalg.norm(front_lab - behind_lab) >= MIN_DISTANCE)
    return apart and abs(float(front_lab[0] - behind_lab[0])) >= lightness


@dataclass(frozen=True)
class Backdrop:
    """What lies behind the objects: a mixture of two close colours, arranged as a small grid that is scaled up.

    Attributes:
        first: one end of the mixture.
        second: the other end.
        grid: share of `second` at each node, shape (rows, columns); (1, 1) is a solid colour, (2, 2) a gradient.
    """

    first: RGB
    second: RGB
    grid: NDArray[np.float64]

    def paint(self, width: int, height: int) -> Image.Image:
        """An RGB image of the given size."""
        if self.grid.size == 1:
            return Image.new("RGB", (width, height), self.first)
        first, second = np.array(self.first), np.array(self.second)
        nodes = first + self.grid[:, :, None] * (second - first)
        return Image.fromarray(nodes.round().astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)


def _candidate(rng: np.random.Generator) -> tuple[RGB, RGB]:
    saturation_span, value_span = pick_weighted(rng, _FAMILIES)
    hue, saturation, value = uniform(rng, 0, 360), uniform(rng, *saturation_span), uniform(rng, *value_span)
    drift = uniform(rng, 0.06, 0.2) * (1 if value < 0.5 else -1)
    other = _rgb(hue + uniform(rng, -25, 25), saturation, value + drift)
    return _rgb(hue, saturation, value), other


def _grid(rng: np.random.Generator) -> NDArray[np.float64]:
    style = rng.random()
    if style < 0.4:
        return np.zeros((1, 1))
    if style < 0.75:
        across, down = rng.random(), rng.random()
        corners = np.array([[0.0, across], [down, across + down]])
        corners /= max(corners.max(), 1e-6)
        return corners[::-1] if chance(rng, 0.5) else corners
    return rng.random((int(rng.integers(3, 16)), int(rng.integers(3, 16)))) * uniform(rng, 0.2, 0.7)


def backdrop(rng: np.random.Generator, inks: Sequence[RGB], *, lightness: float = 0.0) -> Backdrop | None:
    """A backdrop on which all inks stand out, or None where a dozen tries found none.

    Args:
        rng: source of chance.
        inks: colours that will be drawn on it.
        lightness: least difference of L* as well, see `stands_out`.
    """
    pairs = [_candidate(rng) for _ in range(_CANDIDATES)]
    ends = lab([end for pair in pairs for end in pair]).reshape(_CANDIDATES, 2, 1, 3)
    gaps = ends - lab(inks)
    fine = (np.linalg.norm(gaps, axis=-1) >= MIN_DISTANCE) & (np.abs(gaps[..., 0]) >= lightness)
    # A light end and a dark end would hide an ink of the lightness between them.
    same_side = np.sign(gaps[:, 0, :, 0]) == np.sign(gaps[:, 1, :, 0]) if lightness else True
    usable = np.flatnonzero((fine.all(axis=1) & same_side).all(axis=1))
    if usable.size == 0:
        return None
    first, second = pairs[int(usable[0])]
    return Backdrop(first, second, _grid(rng))
