from __future__ import annotations

import random

import pytest

from idefics.engine.speculative import Lookup


def looked_up(ids: list[int], count: int) -> list[int]:
    """By its definition: from the end back, the longest end first."""
    for length in range(min(3, len(ids) - 1), 0, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[-length:]:
                return ids[start + length : start + length + count]
    return []


@pytest.mark.parametrize("seed", range(20))
def test_guesses_are_those_of_the_definition_as_a_text_grows(seed: int) -> None:
    rng = random.Random(seed)
    ids = [rng.randrange(6) for _ in range(rng.randint(1, 30))]
    lookup = Lookup()
    for _ in range(40):
        count = rng.randint(1, 5)
        assert lookup.after(ids, count) == looked_up(ids, count)
        ids += [rng.randrange(6) for _ in range(rng.randint(0, 3))]


def test_what_was_read_is_not_read_again() -> None:
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, place):  # type: ignore[no-untyped-def]
            Counted.reads += 1
            return super().__getitem__(place)

    lookup, ids = Lookup(), Counted(range(5_000))
    lookup.after(ids, 3)
    Counted.reads = 0
    ids.append(7)
    assert lookup.after(ids, 3) == [8, 9, 10]
    assert Counted.reads < 10


@pytest.mark.parametrize(("ids", "count", "guess"), [([1, 2, 3, 1, 2], 2, [3, 1]), ([1, 2, 3], 2, []), ([5, 5], 3, [5])])
def test_guesses(ids: list[int], count: int, guess: list[int]) -> None:
    assert Lookup().after(ids, count) == guess
