"""Work on many things at once that goes on without those that cannot be done."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from idefics.errors import OutOfMemory

__all__ = ["attempt"]

_Thing = TypeVar("_Thing")
_Result = TypeVar("_Result")


def attempt(work: Callable[[Sequence[_Thing]], Sequence[_Result]], things: Sequence[_Thing]) -> list[_Result | Exception]:
    """What `work` makes of many things; where it fails for all of them, of each half, and so on.

    Args:
        work: one result of each of any number of things; whatever a failed try leaves behind, another one makes again.
        things: in any order.

    Returns:
        Of each thing its result, or the error with which it failed alone, our own mistakes included.

    Raises:
        torch.AcceleratorError: the device is lost, to all things and for good.
    """
    if not things:
        return []
    try:
        return list(work(things))
    except torch.AcceleratorError:
        raise
    except Exception as error:
        _let_go(error)
        if len(things) == 1:
            return [error]
    # Out of the `except`, or what failed would be held while the halves are tried.
    half = len(things) // 2
    return attempt(work, things[:half]) + attempt(work, things[half:])


def _let_go(error: BaseException) -> None:
    """Frees the tensors that a failed try held; where it failed can still be told."""
    met: BaseException | None = error
    while met is not None:
        traceback.clear_frames(met.__traceback__)
        met = met.__cause__ or met.__context__
    if isinstance(error, OutOfMemory) and torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is left in pieces that are too small
