"""The scalable fonts that numbers are drawn with: the faces of five font wheels, and Pillow's built-in one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

from idefics.errors import InputError

__all__ = ["WHEELS", "Face", "digit_box", "digit_ratio", "faces", "font", "sturdy"]

WHEELS = ("font_caladea", "font_fredoka_one", "font_manrope", "font_source_sans_pro", "font_source_serif_pro")
"""Packages whose `files` folder holds fonts; `pip install 'idefics[draw]'` brings them."""

_BUILT_IN = "Pillow built-in"


@dataclass(frozen=True)
class Face:
    """One typeface at any size.

    Attributes:
        name: the file's stem, e.g. `"Caladea-Bold"`.
        path: the font file, or None for Pillow's built-in font.
        thin: whether its strokes fade away when digits are small.
    """

    name: str
    path: Path | None
    thin: bool


@cache
def faces() -> tuple[Face, ...]:
    """Every face, in an order that does not depend on the machine; the built-in one is last.

    Only `.ttf` files count: the wheels ship some faces a second time as `.otf`, and Manrope once more as a variable font.

    Raises:
        InputError: none of the font wheels is installed.
    """
    found: list[Face] = []
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder, "files").glob("*.ttf")):
                if "VariableFont" not in path.stem:
                    found.append(Face(path.stem, path, thin="Light" in path.stem))
    if not found:
        raise InputError(f"no font to draw numbers with: 0 of {len(WHEELS)} font wheels found; pip install 'idefics[draw]'")
    return (*found, Face(_BUILT_IN, None, thin=False))


@cache
def sturdy() -> tuple[int, ...]:
    """Indices into `faces()` of those that stay legible at 13 pixels."""
    return tuple(index for index, face in enumerate(faces()) if not face.thin)


@lru_cache(maxsize=384)
def font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """Face `index` of `faces()` at `size` pixels per em; kept, because opening one costs as much as a drawing."""
    face = faces()[index]
    if face.path is None:
        built_in = ImageFont.load_default(size)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            raise InputError("this Pillow was built without FreeType and cannot scale fonts; install Pillow from its wheel")
        return built_in
    return ImageFont.truetype(face.path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8192)
def digit_box(index: int, size: int, digit: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a digit's strokes, from the pen's place."""
    return font(index, size).getbbox(digit)


@cache
def digit_ratio(index: int) -> float:
    """Height of the shortest digit of face `index`, in ems."""
    probe = font(index, 200)
    boxes = [probe.getbbox(digit) for digit in "0123456789"]
    return min(bottom - top for _, top, _, bottom in boxes) / 200
