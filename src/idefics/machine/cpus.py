"""Threads for images. Pillow lets go of the interpreter while it decodes and resizes, so threads are as good as processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_parallel", "usable_cpus"]

Given = TypeVar("Given")
Made = TypeVar("Made")


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(make: Callable[[Given], Made], items: Sequence[Given], *, workers: int | None = None) -> list[Made]:
    """What `make` makes of each item, in their order.

    Args:
        make: must be safe to run in several threads.
        items: begun in this order: the longest work first ends soonest.
        workers: threads at most; None for as many as there are usable CPUs. With one, or for one item, none is started.

    Raises:
        Exception: what `make` raised for the first item that failed, once those that were begun are done.
    """
    threads = min(usable_cpus() if workers is None else workers, len(items))
    if threads <= 1:
        return [make(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as executor:
        return list(executor.map(make, items))
