"""Faster ways to the same result, which may fail on a machine nobody has tried: then the plain way is taken, for good."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["Shortcut"]

_Result = TypeVar("_Result")


class Shortcut:
    """One faster way, open until it fails for the first time.

    Args:
        name: what it is, as the warning calls it.
        plain: what is done instead.

    Attributes:
        open: whether it is still tried.
    """

    def __init__(self, name: str, plain: str) -> None:
        self.name = name
        self.plain = plain
        self.open = True

    def attempt(self, run: Callable[[], _Result]) -> _Result | None:
        """What `run` returns; None once it has failed, and ever after.

        Args:
            run: must leave nothing half done that the plain way would not do again.

        Raises:
            torch.OutOfMemoryError: the plain way would need memory as well, so this says nothing about the faster one.
        """
        if not self.open:
            return None
        try:
            return run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers, drivers and torch each raise their own kinds
            self.close(error)
            return None

    def close(self, error: Exception) -> None:
        """Gives the way up, with one warning."""
        if self.open:
            self.open = False
            said = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"{self.name} failed ({said}); from now on {self.plain}, slower, same output", stacklevel=3)
