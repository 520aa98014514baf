"""Out of memory, told as what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from idefics.errors import OutOfMemory

__all__ = ["explain_out_of_memory"]

# torch raises plain RuntimeErrors where the CPU's memory ends.
_SIGNS = ("out of memory", "not enough memory", "allocate memory", "bad allocation", "std::bad_alloc")


@contextmanager
def explain_out_of_memory(doing: str, *, reduce: str) -> Iterator[None]:
    """Turns every way in which torch and Python run out of memory into `OutOfMemory`.

    Args:
        doing: what was going on, with its size, e.g. `"loading x as float32 (33.6 GiB)"`.
        reduce: what the user can do.

    Raises:
        OutOfMemory: with both, and the first line of what the machine said.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(sign in said.lower() for sign in _SIGNS):
            raise
        said = f" ({said.splitlines()[0]})" if said else ""
        raise OutOfMemory(f"out of memory while {doing}{said}; {reduce}") from error
