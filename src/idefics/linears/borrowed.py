"""Tensors whose memory is another's: views of mapped files, which are to be let go once they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

__all__ = ["LetGo", "borrows_memory", "keep", "owned"]

LetGo: TypeAlias = Callable[[Tensor], None]
"""Told a tensor that will not be read again."""


def keep(tensor: Tensor) -> None:
    """Lets go of nothing."""


def borrows_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a view of something larger, or of a mapped file."""
    storage = tensor.untyped_storage()
    return storage.nbytes() > tensor.nbytes or not storage.resizable()  # torch resizes only what it has allocated


def owned(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if its memory belongs to something else."""
    return tensor.clone() if borrows_memory(tensor) else tensor
