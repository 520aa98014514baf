"""A table of parameter names, written once, read in both directions.

A row may hold `{layer}`, which stands for any number (the same one on both sides), and `{q,k,v}`, which stands for each
of the words in turn, as in a shell. A row that maps to None names a tensor that old files carry and no model needs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

__all__ = ["RenameTable"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WORDS = re.compile(r"\{(\w+(?:,\w+)+)\}")
_LAYER = "{layer}"


class RenameTable:
    """Published names to ours and back.

    Args:
        rows: published name to our name, or to None where the tensor is dropped on purpose.

    Raises:
        ValueError: two rows meet in one name, so that the table could not be inverted.

    >>> table = RenameTable({"model.layers.{layer}.{q,k}_proj.weight": "layers.{layer}.{q,k}.weight", "model.old": None})
    >>> table.ours("model.layers.7.k_proj.weight")
    'layers.7.k.weight'
    >>> table.published("layers.7.k.weight")
    'model.layers.7.k_proj.weight'
    >>> table.ours("model.old") is None
    True
    """

    def __init__(self, rows: Mapping[str, str | None]) -> None:
        self._ours: dict[str, str | None] = {}
        self._published: dict[str, str] = {}
        for published, ours in rows.items():
            for left, right in _expand(published, ours):
                if left in self._ours:
                    raise ValueError(f"two rows begin with {left}")
                self._ours[left] = right
                if right is None:
                    continue
                if right in self._published:
                    raise ValueError(f"two rows end in {right}")
                if left.count(_LAYER) != right.count(_LAYER):
                    raise ValueError(f"{left} and {right} hold different placeholders")
                self._published[right] = left

    def knows(self, published: str) -> bool:
        """Whether the table has a row for a published name."""
        return _template(published) in self._ours

    def ours(self, published: str) -> str | None:
        """Our name for a published one; None for a tensor that is dropped on purpose.

        Raises:
            KeyError: the table has no such row.
        """
        target = self._ours[_template(published)]
        return None if target is None else _fill(target, published)

    def published(self, ours: str) -> str:
        """The published name for ours.

        Raises:
            KeyError: the table has no such row.
        """
        return _fill(self._published[_template(ours)], ours)


def _expand(published: str, ours: str | None) -> Iterator[tuple[str, str | None]]:
    words = [group.split(",") for group in _WORDS.findall(published)]
    if ours is not None and [group.split(",") for group in _WORDS.findall(ours)] != words:
        raise ValueError(f"{published} and {ours} hold different alternatives")
    for choice in itertools.product(*words):
        yield _choose(published, choice), None if ours is None else _choose(ours, choice)


def _choose(row: str, choice: tuple[str, ...]) -> str:
    words = iter(choice)
    return _WORDS.sub(lambda _: next(words), row)


def _template(name: str) -> str:
    return _NUMBER.sub(_LAYER, name)


def _fill(template: str, name: str) -> str:
    for number in _NUMBER.findall(name):
        template = template.replace(_LAYER, number, 1)
    return template
