"""Questions about one scene: each asker returns a question with its answer, or None where the scenes do not allow one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from idefics.data.sources.drawings.chance import chance, pick
from idefics.data.sources.drawings.exchanges import Exchange, Mention, picture_of, where
from idefics.data.sources.drawings.facts import Number, Scene, Thing
from idefics.data.sources.drawings.palette import COLORS
from idefics.data.sources.drawings.shapes import KINDS, PLURALS
from idefics.data.sources.drawings.wording import some, worded

__all__ = ["Asker", "ask_color", "ask_count", "ask_describe", "ask_number", "ask_shape", "ask_thing", "described", "unique"]

Asker = Callable[[np.random.Generator, Sequence[Scene]], Mention | None]
"""A function that asks about the scenes or returns None; which of the two does not depend on chance."""

_ONLY = ("the object", "the shape", "the thing", "this", "it", "this object", "this shape")


def unique(scene: Scene, *, kind: str | None = None, color: str | None = None) -> Thing | None:
    """The only thing of the scene with this kind and colour, or None where there is none or more than one."""
    found = [thing for thing in scene.things if kind in (None, thing.kind) and color in (None, thing.color)]
    return found[0] if len(found) == 1 else None


def described(scene: Scene) -> str:
    """The canonical description: the number, then groups of like things ordered by kind and colour.

    >>> box = (0.0, 0.0, 1.0, 1.0)
    >>> described(Scene(9, 9, (Thing("star", "red", box), Thing("circle", "blue", box), Thing("star", "red", box)), None))
    'a blue circle and two red stars'
    """
    groups = Counter((KINDS.index(thing.kind), COLORS.index(thing.color)) for thing in scene.things)
    parts = [f"the number {scene.number.text}"] if scene.number else []
    parts += [some(groups[kind, color], COLORS[color], KINDS[kind]) for kind, color in sorted(groups)]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def ask_color(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """Colour of the only thing, of the only thing of a kind, or of a number in bold digits."""
    options: list[tuple[int, Thing | Number]] = []
    for index, scene in enumerate(scenes):
        options += [(index, thing) for thing in scene.things if unique(scene, kind=thing.kind)]
        if scene.number and scene.number.bold:
            options.append((index, scene.number))
    if not options:
        return None
    index, it = pick(rng, options)
    place = where(rng, scenes, index)
    if isinstance(it, Number):
        return Mention(Exchange("color", worded(rng, "color", x="the number", w=place), it.color), it)
    if _alone(scenes[index]) and chance(rng, 0.7):
        subject = pick(rng, _ONLY)
        return Mention(Exchange("color", _about_only(rng, "color", subject, scenes, index), it.color), it, ("shape",))
    return Mention(Exchange("color", worded(rng, "color", x=f"the {it.kind}", w=place), it.color), it)


def ask_shape(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """Shape of the only thing, or of the only thing of a colour."""
    options = []
    for index, scene in enumerate(scenes):
        if scene.number:
            options += [(index, thing) for thing in scene.things]
        else:
            options += [(index, thing) for thing in scene.things if unique(scene, color=thing.color)]
    if not options:
        return None
    index, it = pick(rng, options)
    place = where(rng, scenes, index)
    if scenes[index].number:
        return Mention(Exchange("shape", worded(rng, "shape beside", w=place), it.kind), it, ("color",))
    if _alone(scenes[index]) and chance(rng, 0.8):
        subject = pick(rng, ("the object", "the thing", "this", "it", "this object"))
        return Mention(Exchange("shape", _about_only(rng, "shape", subject, scenes, index), it.kind), it, ("color",))
    subject = f"the {it.color} {pick(rng, ('object', 'thing', 'one'))}"
    return Mention(Exchange("shape", worded(rng, "shape", x=subject, w=place), it.kind), it)


def _about_only(rng: np.random.Generator, phrasing: str, subject: str, scenes: Sequence[Scene], index: int) -> str:
    if len(scenes) > 1:  # "this" and "it" need a single image
        subject = pick(rng, ("the object", "the thing"))
        return worded(rng, phrasing, x=subject, w=where(rng, scenes, index))
    place = "" if subject.startswith(("this", "it")) else where(rng, scenes, index)
    return worded(rng, phrasing, x=subject, w=place)


def _alone(scene: Scene) -> bool:
    return len(scene.things) == 1 and scene.number is None


def ask_thing(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """What the only thing is, or that it is a number."""
    options = [i for i, scene in enumerate(scenes) if len(scene.things) + (scene.number is not None) == 1]
    if not options:
        return None
    index = pick(rng, options)
    if len(scenes) == 1:
        question = worded(rng, "thing")
    else:
        question = worded(rng, "thing of two", w=where(rng, scenes, index))
    number = scenes[index].number
    if number is not None:
        return Mention(Exchange("thing", question, described(scenes[index])), number, ("color",) if number.bold else ())
    return Mention(Exchange("thing", question, described(scenes[index])), scenes[index].things[0])


def ask_count(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """How many things, of a kind, of a colour, or of both; never where a number could pass for an object."""
    options = [i for i, scene in enumerate(scenes) if scene.number is None]
    if not options:
        return None
    index = pick(rng, options)
    scene = scenes[index]
    sort = rng.random()
    nouns = pick(rng, ("objects", "objects", "things", "shapes"))
    like = pick(rng, scene.things)
    kind = like.kind if chance(rng, 0.8) else pick(rng, KINDS)
    color = like.color if chance(rng, 0.8) else pick(rng, COLORS)
    asked_kind = kind if 0.45 <= sort < 0.7 or sort >= 0.9 else None
    asked_color = color if sort >= 0.7 else None
    if asked_kind:
        nouns = PLURALS[asked_kind]
    subject = f"{asked_color} {nouns}" if asked_color else nouns
    matches = [t for t in scene.things if asked_kind in (None, t.kind) and asked_color in (None, t.color)]
    exchange = Exchange("count", worded(rng, "count", x=subject, w=where(rng, scenes, index)), str(len(matches)))
    if len(matches) != 1:
        return Mention(exchange)
    still_open = [name for name, said in (("color", asked_color), ("shape", asked_kind)) if said is None]
    return Mention(exchange, matches[0], tuple(still_open))


def ask_number(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """The digits of a number."""
    options = [(i, scene.number) for i, scene in enumerate(scenes) if scene.number]
    if not options:
        return None
    index, number = pick(rng, options)
    phrasing = "sign" if number.plate and chance(rng, 0.5) else "number"
    question = worded(rng, phrasing, w=where(rng, scenes, index))
    return Mention(Exchange("number", question, number.text), number, ("color",) if number.bold else ())


def ask_describe(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """Everything in one image."""
    index = int(rng.integers(len(scenes)))
    return Mention(Exchange("describe", worded(rng, "describe", i=picture_of(rng, scenes, index)), described(scenes[index])))
