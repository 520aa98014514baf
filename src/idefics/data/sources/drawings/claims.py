"""Questions that weigh a claim: is it true of a scene, and of which of two scenes is it true?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from idefics.data.sources.drawings.askers import unique
from idefics.data.sources.drawings.chance import chance, pick, shuffled
from idefics.data.sources.drawings.exchanges import Exchange, Mention, where
from idefics.data.sources.drawings.facts import MAX_THINGS, Number, Scene, Thing
from idefics.data.sources.drawings.palette import COLORS
from idefics.data.sources.drawings.shapes import KINDS
from idefics.data.sources.drawings.wording import word, worded

__all__ = ["Claim", "ask_which", "ask_yesno", "claims_about", "holds"]


@dataclass(frozen=True)
class Claim:
    """Something that a scene shows or does not show; empty fields claim nothing.

    Attributes:
        kind: there is a thing of this kind.
        color: and it has this colour.
        count: there are exactly this many things.
        number: this number is printed; `"any"` claims only that there is one.
    """

    kind: str | None = None
    color: str | None = None
    count: int | None = None
    number: str | None = None

    @property
    def sort(self) -> str:
        """What it is about: `"pair"`, `"kind"`, `"color"`, `"count"`, `"number"` or `"any number"`."""
        if self.number is not None:
            return "any number" if self.number == "any" else "number"
        if self.count is not None:
            return "count"
        return "pair" if self.kind and self.color else "kind" if self.kind else "color"

    @property
    def words(self) -> str:
        """As a noun phrase: `"a red circle"`, `"4 objects"`, `"the number 12"`."""
        if self.number is not None:
            return "a number" if self.number == "any" else f"the number {self.number}"
        if self.count is not None:
            return f"{self.count} objects" if self.count > 1 else "only one object"
        return word(f"{self.color} {self.kind or 'object'}" if self.color else str(self.kind))


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether the scene shows what is claimed."""
    if claim.number is not None:
        return scene.number is not None and claim.number in ("any", scene.number.text)
    if claim.count is not None:
        return len(scene.things) == claim.count
    return any(claim.kind in (None, t.kind) and claim.color in (None, t.color) for t in scene.things)


def _fair(claim: Claim, scene: Scene) -> bool:
    """Whether people agree on the claim: ink and plates have colours, a plate may be square, a number may be an object."""
    if scene.number is None:
        return True
    return claim.sort not in ("color", "count") and not (claim.kind == "square" and scene.number.plate)


def claims_about(scene: Scene) -> Iterator[Claim]:
    """Every claim that is true of the scene and fair to ask."""
    for kind, color in dict.fromkeys((thing.kind, thing.color) for thing in scene.things):
        yield Claim(kind=kind, color=color)
    for kind in dict.fromkeys(thing.kind for thing in scene.things):
        yield Claim(kind=kind)
    if scene.number is not None:
        yield Claim(number=scene.number.text)
        yield Claim(number="any")
        return
    for color in dict.fromkeys(thing.color for thing in scene.things):
        yield Claim(color=color)
    yield Claim(count=len(scene.things))


def _pick_by_sort(rng: np.random.Generator, claims: Sequence[Claim]) -> Claim:
    """A claim of a random sort, so that scenes with many things do not ask about pairs only."""
    sort = pick(rng, sorted({claim.sort for claim in claims}))
    return pick(rng, [claim for claim in claims if claim.sort == sort])


def _false_claim(rng: np.random.Generator, scene: Scene) -> Claim:
    """A claim that is false of the scene; half of them are nearly true."""
    claims: list[Claim] = []
    near = chance(rng, 0.6)
    if scene.number is not None:
        claims.append(Claim(number=_other_number(rng, scene.number.text)))
    else:
        claims.append(Claim(color=pick(rng, [c for c in COLORS if not holds(Claim(color=c), scene)])))
        here = len(scene.things)
        if here > 1:  # as for true claims: half of all scenes hold one thing, and "2 objects" would be mostly false
            counts = [n for n in range(2, MAX_THINGS + 1) if (abs(n - here) == 1 if near else abs(n - here) > 1)]
            claims.append(Claim(count=pick(rng, counts)))
        claims.append(Claim(number="any"))
    absent = [kind for kind in KINDS if not holds(Claim(kind=kind), scene)]
    claims.append(Claim(kind=pick(rng, absent)))
    if near and scene.things:
        like = pick(rng, scene.things)
        pairs = [Claim(kind=like.kind, color=c) for c in COLORS] + [Claim(kind=k, color=like.color) for k in KINDS]
    else:
        pairs = [Claim(kind=pick(rng, absent), color=pick(rng, COLORS))]
    claims.append(pick(rng, [pair for pair in pairs if not holds(pair, scene)]))
    return _pick_by_sort(rng, [claim for claim in claims if _fair(claim, scene)])


def _other_number(rng: np.random.Generator, text: str) -> str:
    """A number of the same length that differs in one digit."""
    place = int(rng.integers(len(text)))
    digits = [d for d in "0123456789" if d != text[place] and (d != "0" or place > 0 or len(text) == 1)]
    return text[:place] + pick(rng, digits) + text[place + 1 :]


def _subject(claim: Claim, scene: Scene) -> tuple[Thing | Number | None, tuple[str, ...]]:
    """What `it` means after a true claim about the scene, and what is still open about it."""
    if claim.number is not None and scene.number is not None:
        return scene.number, ("color",) if scene.number.bold else ()
    if claim.count is not None:
        it = scene.things[0] if claim.count == 1 and scene.number is None else None
        return it, ("color", "shape") if it else ()
    it = unique(scene, kind=claim.kind, color=claim.color)
    return it, tuple(name for name, said in (("color", claim.color), ("shape", claim.kind)) if said is None) if it else ()


def ask_yesno(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """Whether a claim is true of one scene; both answers are equally likely."""
    index = int(rng.integers(len(scenes)))
    scene = scenes[index]
    true = chance(rng, 0.5)
    claims = [claim for claim in claims_about(scene) if _fair(claim, scene) and claim.count != 1]
    claim = _pick_by_sort(rng, claims) if true else _false_claim(rng, scene)
    phrasing = {"count": "are there", "number": "is it number"}.get(claim.sort, "is there")
    words = claim.number if claim.number not in (None, "any") else claim.words
    question = worded(rng, phrasing, x=str(words), w=where(rng, scenes, index))
    it, still_open = _subject(claim, scene) if true else (None, ())
    return Mention(Exchange("yesno", question, "yes" if true else "no"), it, still_open)


def ask_which(rng: np.random.Generator, scenes: Sequence[Scene]) -> Mention | None:
    """Which of two images a claim is true of; exactly one it is."""
    if len(scenes) != 2:
        return None
    options: list[list[Claim]] = []
    for scene, other in (scenes, scenes[::-1]):
        claims = [c for c in claims_about(scene) if _fair(c, scene) and _fair(c, other) and not holds(c, other)]
        options.append(claims)
    noun = pick(rng, ("image", "image", "picture", "photo"))
    counts = [len(scene.things) if scene.number is None else None for scene in scenes]
    if None not in counts and counts[0] != counts[1] and chance(rng, 0.15):
        answer = "the first" if (counts[0] or 0) > (counts[1] or 0) else "the second"
        return Mention(Exchange("which", worded(rng, "which more", i=noun), answer))
    for index in shuffled(rng, (0, 1)):
        if options[index]:
            claim = _pick_by_sort(rng, options[index])
            it, still_open = _subject(claim, scenes[index])
            question = worded(rng, "which", i=noun, x=claim.words)
            return Mention(Exchange("which", question, ("the first", "the second")[index]), it, still_open)
    return None
