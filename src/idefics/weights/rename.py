"""A table of names, written once, read in both directions.

A row names a module, and holds for every tensor that the files keep of it, whatever they call it (`weight`, or `qweight` and
`scales`); or a tensor of its own. Of two rows the longer one counts.

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
        rows: published name to our name, of modules or tensors; None where a tensor is dropped on purpose.

    Raises:
        ValueError: two rows meet in one name, so that the table could not be inverted.

    >>> table = RenameTable({"model.layers.{layer}.{q,k}_proj": "layers.{layer}.{q,k}", "model.old": None})
    >>> table.ours("model.layers.7.k_proj.weight"), table.ours("model.layers.7.k_proj.qweight")
    ('layers.7.k.weight', 'layers.7.k.qweight')
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
        return _found(self._ours, published) is not None

    def ours(self, published: str) -> str | None:
        """Our name for a published one; None for a tensor that is dropped on purpose.

        Raises:
            KeyError: the table has no such row.
        """
        row, rest = _row(self._ours, published)
        target = self._ours[row]
        return None if target is None else _fill(target, published) + rest

    def published(self, ours: str) -> str:
        """The published name for ours.

        Raises:
            KeyError: the table has no such row.
        """
        row, rest = _row(self._published, ours)
        return _fill(self._published[row], ours) + rest


def _expand(published: str, ours: str | None) -> Iterator[tuple[str, str | None]]:
    words = [group.split(",") for group in _WORDS.findall(published)]
    if ours is not None and [group.split(",") for group in _WORDS.findall(ours)] != words:
        raise ValueError(f"{published} and {ours} hold different alternatives")
    for choice in itertools.product(*words):
        yield _choose(published, choice), None if ours is None else _choose(ours, choice)


def _choose(row: str, choice: tuple[str, ...]) -> str:
    words = iter(choice)
    return _WORDS.sub(lambda _: next(words), row)


def _row(rows: Mapping[str, str | None] | Mapping[str, str], name: str) -> tuple[str, str]:
    found = _found(rows, name)
    if found is None:
        raise KeyError(name)
    return found


def _found(rows: Mapping[str, str | None] | Mapping[str, str], name: str) -> tuple[str, str] | None:
    """The longest row that a name begins with, and what is left of the name; None if there is no such row."""
    end = len(name)
    while end > 0:
        row = _template(name[:end])
        if row in rows and (end == len(name) or rows[row] is not None):  # dropped is what is named, not what is below it
            return row, name[end:]
        end = name.rfind(".", 0, end)
    return None


def _template(name: str) -> str:
    return _NUMBER.sub(_LAYER, name)


def _fill(template: str, name: str) -> str:
    for number in _NUMBER.findall(name):
        template = template.replace(_LAYER, number, 1)
    return template
