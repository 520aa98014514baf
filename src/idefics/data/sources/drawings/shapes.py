"""The outlines of the eight kinds of things, chosen so that none is taken for another even at twenty pixels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "PLURALS", "Outline", "outline"]

Outline = NDArray[np.float64]
"""Corners of a polygon, shape (corners, 2), as (x, y) with y downwards."""


def _regular(corners: int) -> Outline:
    angles = -np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Outline:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 44, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


def _cross(arm: float = 0.32) -> Outline:
    a = arm
    corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    return np.array(corners, dtype=np.float64)


def _moon() -> Outline:
    """A disc less a slightly smaller disc to its right."""
    shift, inner = 0.52, 0.82
    tip_x = (1 - inner**2 + shift**2) / (2 * shift)
    tip = math.acos(tip_x)
    reach = math.atan2(math.sin(tip), tip_x - shift)
    outside = np.linspace(tip, 2 * np.pi - tip, 30)
    inside = np.linspace(2 * np.pi - reach, reach, 24)[1:-1]
    return np.concatenate(
        [
            np.stack([np.cos(outside), np.sin(outside)], axis=1),
            np.stack([shift + inner * np.cos(inside), inner * np.sin(inside)], axis=1),
        ]
    )


_SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
_DIAMOND = np.array([(0, -1), (0.68, 0), (0, 1), (-0.68, 0)], dtype=np.float64)

# Outline, and how far it may turn (degrees) before it is called something else.
_SHAPES: dict[str, tuple[Outline, float]] = {
    "circle": (_regular(48), 0.0),
    "square": (_SQUARE, 9.0),
    "triangle": (_regular(3), 18.0),
    "star": (_star(), 18.0),
    "heart": (_heart(), 15.0),
    "diamond": (_DIAMOND, 7.0),
    "cross": (_cross(), 12.0),
    "moon": (_moon(), 20.0),
}

KINDS: tuple[str, ...] = tuple(_SHAPES)
"""Names of the kinds; the patch label of a kind is its place here plus one, and the digits 0-9 follow."""

PLURALS: dict[str, str] = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in KINDS}
"""Plural of each kind."""


def outline(kind: str, *, turn: float) -> Outline:
    """The polygon of a kind, turned, with its bounding box at the origin and its longer side of length one.

    Args:
        kind: one of `KINDS`.
        turn: in [-1, 1], the fraction of the largest rotation at which the kind is still recognised.
    """
    points, most = _SHAPES[kind]
    angle = math.radians(turn * most)
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = points @ np.array([[cosine, sine], [-sine, cosine]])
    turned -= turned.min(axis=0)
    return np.asarray(turned / turned.max())
