"""Threads for images. Pillow lets go of the interpreter while it decodes and resizes, so threads are as good as processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, Generic, Self, TypeVar

from idefics.errors import OptionError

__all__ = ["ImagePool", "in_parallel", "usable_cpus"]

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
        Exception: what `make` raised for the first item that failed, once all others are done.
    """
    threads = min(usable_cpus() if workers is None else workers, len(items))
    if threads <= 1:
        return [make(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as executor:
        return list(executor.map(make, items))


class ImagePool(Generic[Made]):
    """Images prepared in the background, so that nobody who computes waits for a queue of large photos.

    Threads start with the first image and end with `close`, or where a `with` block ends. Each image has a future of its
    own: what is wrong with one concerns no other.

    Args:
        prepare: what is done with each image, in several threads at once; `Processor.prepare` of any family.
        workers: threads; None for as many as there are usable CPUs.
        limit: images that may be unfinished at once; None for four per thread. Who hands in more waits, so that
            decoded photos do not fill the memory.

    Raises:
        OptionError: `workers` or `limit` is below one.
    """

    def __init__(self, prepare: Callable[[Any], Made], *, workers: int | None = None, limit: int | None = None) -> None:
        workers = usable_cpus() if workers is None else workers
        limit = 4 * workers if limit is None else limit
        if workers < 1 or limit < 1:
            raise OptionError(f"workers = {workers} and limit = {limit}: an image pool needs at least one of each")
        self.limit = limit
        self._prepare = prepare
        self._free = BoundedSemaphore(limit)
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="images")

    def submit(self, image: Any) -> Future[Made]:
        """The future of one image; waits while `limit` images are unfinished.

        Raises:
            RuntimeError: the pool is closed.
        """
        self._free.acquire()
        try:
            future = self._executor.submit(self._prepare, image)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future

    def in_order(self, images: Iterable[Any]) -> Iterator[Future[Made]]:
        """A finished future per image, in their order, taking at most `limit` images ahead of the one that is returned."""
        ahead: deque[Future[Made]] = deque()
        try:
            for image in images:
                if len(ahead) == self.limit:
                    yield _finished(ahead.popleft())
                ahead.append(self.submit(image))
            while ahead:
                yield _finished(ahead.popleft())
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Ends the threads once the images that were begun are done; those that were not are cancelled."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finished(future: Future[Made]) -> Future[Made]:
    future.exception()  # waits, and leaves the error to who asks for the result
    return future
