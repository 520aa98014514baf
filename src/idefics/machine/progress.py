"""Who is told how far long work is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "Steps"]

Progress: TypeAlias = Callable[[int, int], None]
"""Told how much is done and how much there is, after each part."""
Steps: TypeAlias = Callable[[str, int, int], None]
"""Told, before each step: its name, how many are done, how many there are."""
