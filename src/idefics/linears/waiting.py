"""Weights that are arranged when they are first needed, a part of the model at a time, and not before.

Text alone never pays for the vision tower then, and a model is there as soon as its files are mapped.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol
from weakref import ref

import torch
from torch import Tensor

from idefics.machine.memory import promise

__all__ = ["Portion", "Scratch", "Waiting"]


class Scratch:
    """Memory in which one matrix after the other is put together.

    Fresh memory for each costs more than the copy: the system clears every page before it hands it out.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def joined(self, rows: Sequence[Tensor]) -> Tensor:
        """Matrices (out, in) one below the other; one alone is itself, several are overwritten by the next call."""
        if len(rows) == 1:
            return rows[0]
        size = sum(matrix.nbytes for matrix in rows)
        if size > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # given back first
            self._memory = torch.empty(size, dtype=torch.uint8)
        out = self._memory[:size].view(rows[0].dtype).view(-1, rows[0].shape[1])
        torch.cat(list(rows), out=out)
        return out


class Waiting(Protocol):
    """A layer whose weight is arranged later."""

    @property
    def missing(self) -> int:
        """Bytes of memory that it will take then: none where it is arranged, or gives back as much."""
        ...

    def reorder(self, scratch: Scratch) -> None:
        """Arranges the weight, if it still waits."""
        ...


class Portion:
    """Layers of which all are needed where one is: they are arranged together, by whoever comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Weak, so that a model that is dropped is gone at once.
        self._layers: list[ref[Waiting]] = []
        promise(self)

    def add(self, layer: Waiting) -> None:
        """One more."""
        self._layers.append(ref(layer))

    def reorder(self) -> None:
        """Arranges all that still wait, in the order in which they were added; other threads wait until it is done.

        Raises:
            RuntimeError: the memory ends, as torch says it; what is arranged by then stays so, the rest waits on.
        """
        with self._lock:
            scratch = Scratch()
            for layer in self._present():
                layer.reorder(scratch)
            self._layers.clear()

    @property
    def missing(self) -> int:
        """Bytes of memory that those which still wait will take."""
        return sum(layer.missing for layer in self._present())

    def _present(self) -> list[Waiting]:
        return [layer for layer in (reference() for reference in list(self._layers)) if layer is not None]
