"""Guessing the next tokens from what the prompt and the answer already hold: free, and right where answers quote.

The guesses are checked in one pass and kept as far as they are what the model chooses anyway, so answers do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Lookup"]


class Lookup:
    """Where each run of a text's tokens stood last, noted as the text grows: what followed it there is the guess.

    Args:
        longest: newest tokens that are looked for; shorter ends are tried if those do not recur.

    >>> Lookup().after([7, 8, 9, 1, 7, 8], 2)
    [9, 1]
    """

    def __init__(self, longest: int = 3) -> None:
        self._longest = longest
        self._ends: dict[tuple[int, ...], int] = {}  # run: just past its last place before the newest token
        self._noted = 0

    def after(self, ids: Sequence[int], count: int) -> list[int]:
        """What followed the last place where the newest tokens stood before.

        Args:
            ids: prompt and answer; those of the calls before, and more.
            count: tokens to guess at most.

        Returns:
            Up to `count` ids; none if even the newest token is new.
        """
        for end in range(self._noted + 1, len(ids)):
            for length in range(1, min(self._longest, end) + 1):
                self._ends[tuple(ids[end - length : end])] = end
        self._noted = max(self._noted, len(ids) - 1)
        for length in range(min(self._longest, len(ids) - 1), 0, -1):
            end = self._ends.get(tuple(ids[-length:]), 0)
            if end:
                return list(ids[end : end + count])
        return []
