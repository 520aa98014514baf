"""Draws scenes: one thing, several things, or a printed number, on varied backdrops, as a resized photo would show them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from idefics.data.sources.drawings.chance import chance, pick, pick_weighted, uniform
from idefics.data.sources.drawings.facts import MAX_THINGS, Drawing, Number, Scene, Thing
from idefics.data.sources.drawings.invent import MOTIFS, Motif, random_number, random_things
from idefics.data.sources.drawings.lettering import MIN_DIGIT_HEIGHT, lettering
from idefics.data.sources.drawings.palette import COLORS, RGB, Backdrop, backdrop, shade, stands_out
from idefics.data.sources.drawings.placing import arrange, box_of, place_beside
from idefics.data.sources.drawings.shapes import KINDS, Outline
from idefics.errors import InputError

__all__ = ["MIN_SIDE", "draw_scene", "wear"]

MIN_SIDE = 84
"""Least width and height of a drawing in pixels: six things of `MIN_THING` and a plate with four digits must fit."""

_STROKE_LIGHTNESS = 30.0


def draw_scene(
    rng: np.random.Generator,
    *,
    width: int,
    height: int,
    subject: Motif | None = None,
    max_digits: int = 4,
    max_things: int = MAX_THINGS,
) -> Drawing:
    """Draws one scene; the same state of `rng` gives the same drawing to the bit.

    Args:
        rng: source of chance.
        width: pixels, at least `MIN_SIDE`.
        height: pixels, at least `MIN_SIDE`.
        subject: what to draw; None chooses at random.
        max_digits: a number has 1 to `max_digits` digits, all lengths equally likely.
        max_things: several things are 1 to `max_things`, all counts equally likely.

    Raises:
        InputError: a size, `max_digits` or `max_things` out of range.
    """
    if min(width, height) < MIN_SIDE:
        raise InputError(f"a drawing of {width} x {height} pixels is too small; make both sides at least {MIN_SIDE}")
    if not 1 <= max_digits <= 4:
        raise InputError(f"max_digits is {max_digits}; choose 1 to 4")
    if not 1 <= max_things <= MAX_THINGS:
        raise InputError(f"max_things is {max_things}; choose 1 to {MAX_THINGS}")
    chosen = subject or pick_weighted(rng, MOTIFS)
    scale = uniform(rng, 1.0, 3.0) if chance(rng, 0.5) else 1.0
    if chosen == "number":
        picture, scene, outlines = _paint_number(rng, width=width, height=height, scale=scale, max_digits=max_digits)
    else:
        count = 1 if chosen == "thing" else int(rng.integers(1, max_things + 1))
        picture, scene, outlines = _paint_things(rng, width=width, height=height, scale=scale, count=count)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return Drawing(wear(rng, picture), scene, outlines)


def _paint_things(
    rng: np.random.Generator, *, width: int, height: int, scale: float, count: int
) -> tuple[Image.Image, Scene, tuple[Outline, ...]]:
    scenery: Backdrop | None = None
    while scenery is None:  # a rare choice of colours, such as white, gray and black at once, fits few backdrops
        looks = random_things(rng, count)
        inks = {color: shade(rng, color) for _, color in looks}
        scenery = backdrop(rng, list(inks.values()))
    outlines = arrange(rng, [kind for kind, _ in looks], width=width, height=height)
    picture = scenery.paint(round(width * scale), round(height * scale))
    _fill(rng, picture, outlines, [inks[color] for _, color in looks], scale=scale)
    things = tuple(Thing(kind, color, box_of(points)) for (kind, color), points in zip(looks, outlines, strict=True))
    return picture, Scene(width, height, things, None), outlines


def _paint_number(
    rng: np.random.Generator, *, width: int, height: int, scale: float, max_digits: int
) -> tuple[Image.Image, Scene, tuple[Outline, ...]]:
    text = random_number(rng, max_digits)
    plated, joined = chance(rng, 0.35), chance(rng, 0.3)
    scenery: Backdrop | None = None
    plate: str | None = None
    while scenery is None:
        color = pick(rng, COLORS)
        ink = shade(rng, color)
        # A plate is a rectangle itself: nobody should have to wonder whether it is the square.
        kind, thing_color = pick(rng, [k for k in KINDS if not (plated and k == "square")]), pick(rng, COLORS)
        thing_ink = shade(rng, thing_color)
        inks = [ink]
        if plated:
            plate = pick(rng, COLORS)
            plate_ink = shade(rng, plate)
            if not stands_out(ink, plate_ink, lightness=_STROKE_LIGHTNESS):
                continue
            inks = [plate_ink]
        lightness = 0.0 if plated else _STROKE_LIGHTNESS
        scenery = backdrop(rng, [*inks, thing_ink] if joined else inks, lightness=lightness)

    room = 0.6 if joined else 0.9
    tallest = min(0.65 * height, 1.4 * room * width / len(text))
    wished = uniform(rng, MIN_DIGIT_HEIGHT, max(tallest, MIN_DIGIT_HEIGHT + 1))
    letters = lettering(rng, text, digit_height=wished, max_width=room * width, max_height=0.7 * height, scale=scale)
    digit_height = letters.digit_height / scale
    pad_x, pad_y = (uniform(rng, 0.35, 0.6) * digit_height, uniform(rng, 0.25, 0.45) * digit_height) if plated else (0, 0)
    pad_x = min(pad_x, (width - letters.mask.width / scale) / 2 - 1)
    pad_y = min(pad_y, (height - letters.mask.height / scale) / 2 - 1)
    block_w, block_h = letters.mask.width / scale + 2 * pad_x, letters.mask.height / scale + 2 * pad_y
    x, y = uniform(rng, 0.5, width - block_w - 0.5), uniform(rng, 0.5, height - block_h - 0.5)

    picture = scenery.paint(round(width * scale), round(height * scale))
    if plated:
        corners = [x * scale, y * scale, (x + block_w) * scale, (y + block_h) * scale]
        rim = ink if chance(rng, 0.5) else None
        radius = uniform(rng, 0, 0.3) * block_h * scale
        ImageDraw.Draw(picture).rounded_rectangle(corners, radius, plate_ink, rim, max(1, round(scale)))
    corner_x, corner_y = round((x + pad_x) * scale), round((y + pad_y) * scale)
    picture.paste(ink, (corner_x, corner_y), letters.mask)
    digits = tuple((points + np.array([corner_x, corner_y])) / scale for points in letters.outlines)
    number = Number(text, color, tuple(map(box_of, digits)), digit_height, plate, letters.bold and digit_height >= 24)

    things: tuple[Thing, ...] = ()
    beside: tuple[Outline, ...] = ()
    if joined:
        taken = (x, y, x + block_w, y + block_h)
        found = place_beside(rng, kind, taken, width=width, height=height)
        if found is not None:
            beside, things = (found,), (Thing(kind, thing_color, box_of(found)),)
            _fill(rng, picture, beside, [thing_ink], scale=scale)
    return picture, Scene(width, height, things, number), (*beside, *digits)


def _fill(
    rng: np.random.Generator, picture: Image.Image, outlines: Sequence[Outline], inks: Sequence[RGB], *, scale: float
) -> None:
    draw = ImageDraw.Draw(picture)
    rimmed = chance(rng, 0.25)
    for points, ink in zip(outlines, inks, strict=True):
        flat = (points * scale).ravel().tolist()
        size = float((points.max(axis=0) - points.min(axis=0)).max())
        if rimmed and size >= 28:
            rim = (20, 20, 20) if max(ink) > 90 and chance(rng, 0.4) else _rim(ink)
            draw.polygon(flat, ink, rim, max(1, round(uniform(rng, 0.02, 0.035) * size * scale)))
        else:
            draw.polygon(flat, ink)


def _rim(ink: RGB) -> RGB:
    """A darker tone of the same colour; a lighter one where there is nothing darker."""
    if max(ink) < 90:
        return 120, 120, 120
    red, green, blue = ink
    return int(red * 0.6), int(green * 0.6), int(blue * 0.6)


def wear(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The traces of a camera and of a web page: blur, brightness, noise, JPEG."""
    if chance(rng, 0.12):
        picture = picture.filter(ImageFilter.GaussianBlur(uniform(rng, 0.3, 0.8)))
    if chance(rng, 0.3):
        factor = uniform(rng, 0.9, 1.06)
        picture = picture.point([min(255, round(level * factor)) for level in range(256)] * 3)
    if chance(rng, 0.5):
        picture = _grain(rng, picture)
    if chance(rng, 0.05):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(55, 90)))
        picture = Image.open(buffer).convert("RGB")
    return picture


def _grain(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Uniform noise of up to 12 levels either way, gray or coloured; raw bytes are ten times cheaper than normals."""
    pixels = np.asarray(picture).astype(np.int16)
    channels = 3 if chance(rng, 0.4) else 1
    raw = np.frombuffer(rng.bytes(pixels.shape[0] * pixels.shape[1] * channels), dtype=np.int8)
    noise = raw.reshape(*pixels.shape[:2], channels).astype(np.int16) * int(rng.integers(2, 13)) // 128
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
