"""Host names to addresses.

A lookup cannot be stopped once it has begun, however long a stranger's name server keeps it waiting, so threads are shared
out: each request has two at most, and a name is looked up once at a time however many ask for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from idefics.errors import ImageError

__all__ = ["Lookups", "RequestLookups"]

_THREADS = 128
_SHARE = 2  # of one request


class Lookups:
    """The lookups of all requests."""

    def __init__(self) -> None:
        # Not asyncio's own pool, in which other work would wait for slow names.
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="resolve")
        self._free = asyncio.Semaphore(_THREADS)  # who waits here can still leave, unlike in the pool's queue
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> Sequence[str]:
        """All addresses that a host stands for.

        Raises:
            ImageError: there is no such host.
        """
        if host not in self._running:
            await self._free.acquire()
            if host in self._running:  # somebody else was faster
                self._free.release()
            else:
                self._begin(host)
        try:
            return await asyncio.shield(self._running[host])
        except (OSError, UnicodeError) as error:
            raise ImageError(f"{host} cannot be found: {error}") from None

    def close(self) -> None:
        """Lets go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, host: str) -> None:
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, _looked_up, host)
        self._running[host] = lookup

        def ended(lookup: asyncio.Future[list[str]]) -> None:
            del self._running[host]
            self._free.release()
            if not lookup.cancelled():
                lookup.exception()  # of which nobody may be left to hear

        lookup.add_done_callback(ended)


class RequestLookups:
    """One request's share of the lookups, which asks for each host once.

    Args:
        lookups: of all requests.
    """

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._places = asyncio.Semaphore(_SHARE)
        self._found: dict[str, Sequence[str]] = {}

    async def addresses(self, host: str) -> Sequence[str]:
        """As `Lookups.addresses`."""
        if host not in self._found:
            async with self._places:
                if host not in self._found:
                    self._found[host] = await self._lookups.addresses(host)
        return self._found[host]


def _looked_up(host: str) -> list[str]:
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))
