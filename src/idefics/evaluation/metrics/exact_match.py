"""Right to the letter, or wrong."""

from __future__ import annotations

__all__ = ["exact_match"]


def exact_match(answer: str, expected: str) -> float:
    """1 if the answer is the expected one to the letter, else 0; spaces around it and capitals count.

    >>> exact_match("a star", "a star"), exact_match("A star", "a star")
    (1.0, 0.0)
    """
    return float(answer == expected)
