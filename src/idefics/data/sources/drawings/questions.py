"""Conversations about drawings: questions whose answers follow from the facts, follow-ups, small talk, plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from idefics.data.sources.drawings.askers import Asker, ask_color, ask_count, ask_describe, ask_number, ask_shape, ask_thing
from idefics.data.sources.drawings.chance import chance, pick, pick_weighted
from idefics.data.sources.drawings.claims import ask_which, ask_yesno
from idefics.data.sources.drawings.exchanges import TASKS, Exchange, Mention
from idefics.data.sources.drawings.facts import Number, Scene, Thing
from idefics.data.sources.drawings.invent import invent_scene
from idefics.data.sources.drawings.wording import SMALL_TALK, typed, worded
from idefics.errors import InputError

__all__ = ["TASKS", "Exchange", "conversation", "corpus", "questions_of", "small_talk", "tasks_of"]

# Asker and how often it is chosen where it can be.
_ASKERS: dict[str, tuple[Asker, float]] = {
    "color": (ask_color, 2.0),
    "shape": (ask_shape, 2.0),
    "thing": (ask_thing, 1.5),
    "count": (ask_count, 4.0),
    "number": (ask_number, 5.0),
    "which": (ask_which, 5.0),
    "yesno": (ask_yesno, 2.5),
    "describe": (ask_describe, 1.5),
}
_FOLLOW_UP = 0.5
_THANKS = 0.03
_COUNT_OF_ONE = 0.7  # or else "1" would be the answer to half of all counts


def questions_of(task: str, rng: np.random.Generator, scenes: Sequence[Scene]) -> Exchange:
    """One question of the given task about one or two scenes.

    Args:
        task: one of `TASKS`; `"chat"` ignores the scenes.
        rng: source of chance.
        scenes: one or two.

    Raises:
        InputError: an unknown task, or one that these scenes do not allow; see `tasks_of`.
    """
    if task == "chat":
        return small_talk(rng)
    if task not in _ASKERS:
        raise InputError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    _check(scenes)
    asked = _ASKERS[task][0](rng, scenes)
    if asked is None:
        raise InputError(f"no {task!r} question can be asked about these scenes; tasks_of() lists those that can")
    return asked.exchange


def tasks_of(scenes: Sequence[Scene]) -> tuple[str, ...]:
    """The tasks that `questions_of` accepts for these scenes, without `"chat"`."""
    _check(scenes)
    return tuple(task for task, (ask, _) in _ASKERS.items() if ask(np.random.default_rng(0), scenes) is not None)


def conversation(
    rng: np.random.Generator, scenes: Sequence[Scene], *, turns: int, favor: Mapping[str, float] | None = None
) -> list[Exchange]:
    """A conversation about one or two scenes.

    Half of the turns that leave something open about one thing are followed up ("And what color is it?").

    Args:
        rng: source of chance.
        scenes: one or two, in the order in which the prompt shows them.
        turns: how many questions, at least 1.
        favor: tasks that are asked about this many times as often as usual.

    Raises:
        InputError: no scene, more than two, an unknown task, or `turns` below 1.
    """
    _check(scenes)
    if unknown := set(favor or ()) - set(_ASKERS):
        raise InputError(f"unknown tasks {', '.join(sorted(unknown))}; choose from {', '.join(_ASKERS)}")
    weights = {task: weight * (favor or {}).get(task, 1.0) for task, (_, weight) in _ASKERS.items()}
    if turns < 1:
        raise InputError(f"turns is {turns}; a conversation has at least 1")
    done: list[Exchange] = []
    last: Mention | None = None
    while len(done) < turns:
        if last and last.it and last.open and chance(rng, _FOLLOW_UP):
            last = _follow_up(rng, last.it, last.open)
        elif done and len(done) == turns - 1 and chance(rng, _THANKS):
            answer, phrasings = next(talk for talk in SMALL_TALK if talk[0] == "you are welcome")
            last = Mention(Exchange("chat", typed(rng, pick(rng, phrasings)), answer))
        else:
            last = _fresh(rng, scenes, done, weights)
        done.append(last.exchange)
    return done


def small_talk(rng: np.random.Generator) -> Exchange:
    """A turn that needs no image."""
    answer, phrasings = pick(rng, SMALL_TALK)
    return Exchange("chat", typed(rng, pick(rng, phrasings)), answer)


def corpus(rng: np.random.Generator, n: int) -> Iterator[str]:
    """Texts to train a tokenizer on, one question with its answer each, without drawing anything.

    Args:
        rng: source of chance.
        n: how many texts.
    """
    for _ in range(n):
        if chance(rng, 0.08):
            turn = small_talk(rng)
        else:
            scenes = [invent_scene(rng, width=168, height=126) for _ in range(pick(rng, (1, 1, 2)))]
            turn = conversation(rng, scenes, turns=2)[-1]
        yield f"{turn.question}\n{turn.answer}"


def _check(scenes: Sequence[Scene]) -> None:
    if len(scenes) not in (1, 2):
        raise InputError(f"questions are about 1 or 2 scenes, not {len(scenes)}")


def _fresh(
    rng: np.random.Generator, scenes: Sequence[Scene], done: Sequence[Exchange], weights: Mapping[str, float]
) -> Mention:
    """A question that differs from the earlier ones, unless luck fails eight times."""
    open_tasks = dict(weights)
    if all(len(scene.things) <= 1 for scene in scenes):
        open_tasks["count"] = _COUNT_OF_ONE
    asked: Mention | None = None
    for _ in range(8):
        task = pick_weighted(rng, tuple(open_tasks.items()))
        found = _ASKERS[task][0](rng, scenes)
        if found is None:
            del open_tasks[task]
            continue
        asked = found
        if all(_gist(found.exchange) != _gist(turn) for turn in done):
            return found
    if asked is None:
        found = ask_describe(rng, scenes)
        assert found is not None, "every scene can be described"
        asked = found
    return asked


def _gist(turn: Exchange) -> tuple[str, str]:
    """Task and answer: two turns that share both teach nothing new, except for claims."""
    return turn.task.replace("thing", "describe"), turn.question if turn.task in ("yesno", "which") else turn.answer


def _follow_up(rng: np.random.Generator, it: Thing | Number, still_open: tuple[str, ...]) -> Mention:
    asked = pick(rng, still_open)
    rest = tuple(name for name in still_open if name != asked)
    answer = it.kind if asked == "shape" and isinstance(it, Thing) else it.color
    return Mention(Exchange(asked, worded(rng, f"and {asked}"), answer), it, rest)
