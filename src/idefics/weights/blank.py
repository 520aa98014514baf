"""Weights that are blank: zeros where a download never arrived, in a file that has its full size all the same.

Downloaders lay a file out first and fill it piece by piece, so its size and its header prove nothing. No trained matrix
holds a page of zeros, so a few pages of each are looked at: of the 16.8 GB of an 8B some 4,000 pages, 16 MB.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from idefics.errors import CheckpointError
from idefics.weights.shards import TensorEntry

__all__ = ["Blank", "blank_weights", "half_blank"]

PAGE = 4096
"""Bytes looked at in one place."""
STRIDE = 8 * 2**20
"""Bytes between two looks into a large tensor: below the pieces of 10 MB and more that downloaders fetch."""
FEWEST = 4
"""Looks into a tensor, however small."""
ROWS = 256
"""Of a matrix in memory, at equal distances: what is missing is missing in one piece."""


@dataclass(frozen=True)
class Blank:
    """What was found.

    Attributes:
        names: tensors with zeros where numbers should be, as published.
        tensors: how many were looked at.
    """

    names: tuple[str, ...]
    tensors: int

    def __str__(self) -> str:
        """What a user is told after the folder's name."""
        shown = ", ".join(self.names[:3]) + (f" and {len(self.names) - 3} more" if len(self.names) > 3 else "")
        return (
            f"{len(self.names)} of {self.tensors} weights hold zeros where numbers should be ({shown}): a download that was "
            "never completed? Answers will be wrong; download it again, and see what `idefics verify` says"
        )


def blank_weights(entries: Iterable[TensorEntry]) -> Blank:
    """Looks for blank pages in tensors.

    Vectors are passed over: biases and gates may be zero. So are the first and the last pages of a large matrix: a table
    of tokens has rows there that no text uses, padding above all.

    Args:
        entries: of `Shards`.

    Raises:
        CheckpointError: a file cannot be read.
    """
    matrices = [entry for entry in entries if entry.bytes and max(entry.shape, default=0) * 2 <= math.prod(entry.shape)]
    found: list[str] = []
    for file in sorted({entry.file for entry in matrices}):
        found += _blank_in(file, [entry for entry in matrices if entry.file == file])
    return Blank(tuple(found), len(matrices))


def half_blank(weight: Tensor) -> bool:
    """Whether half or more of a matrix in memory is zeros; vectors are passed over, as `blank_weights` does.

    >>> import torch
    >>> half_blank(torch.cat((torch.ones(3, 4), torch.zeros(3, 4)))), half_blank(torch.zeros(9))
    (True, False)
    """
    if max(weight.shape, default=0) * 2 > weight.numel():
        return False
    rows = weight[:: max(1, len(weight) // ROWS)]
    return 2 * int(rows.count_nonzero()) <= rows.numel()


def _blank_in(path: Path, entries: Collection[TensorEntry]) -> list[str]:
    try:
        with path.open("rb", buffering=0) as file:
            found = []
            for entry in entries:
                for offset, length in _looks(entry.bytes):
                    file.seek(entry.start + offset)
                    if not any(file.read(length)):
                        found.append(entry.name)
                        break
            return found
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _looks(size: int) -> list[tuple[int, int]]:
    """Where to look into a tensor of so many bytes, and how far.

    >>> _looks(100), len(_looks(64 * 2**20))
    ([(0, 100)], 8)
    """
    if size <= FEWEST * PAGE:
        return [(0, size)]
    count = max(FEWEST, -(-size // STRIDE))
    step = (size - PAGE) / (count + 1)
    return [(int(step * look), PAGE) for look in range(1, count + 1)]
