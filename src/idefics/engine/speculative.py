"""Guessing the next tokens from what the prompt and the answer already hold: free, and right where answers quote.

The guesses are checked in one pass and kept as far as they are what the model chooses anyway, so answers do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

from idefics.engine.sequences import AnswerInMaking

__all__ = ["guesses", "look_up"]


def guesses(answer: AnswerInMaking, count: int | None) -> list[int]:
    """What may follow an answer's newest token, if only that is left to compute: up to `count` ids that it has room for."""
    room = answer.most - len(answer.ids) - 1
    return look_up(answer.ids, min(count, room)) if count and answer.decoding and room > 0 else []


def look_up(ids: Sequence[int], count: int, *, longest: int = 3) -> list[int]:
    """What followed the last place where the newest tokens stood before.

    Args:
        ids: prompt and answer.
        count: tokens to guess at most.
        longest: newest tokens that are looked for; shorter ends are tried if those do not recur.

    Returns:
        Up to `count` ids; none if even the newest token is new.

    >>> look_up([7, 8, 9, 1, 7, 8], 2)
    [9, 1]
    """
    for length in range(min(longest, len(ids) - 1), 0, -1):
        tail = list(ids[-length:])
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start] == tail[0] and list(ids[start : start + length]) == tail:
                return list(ids[start + length : start + length + count])
    return []
