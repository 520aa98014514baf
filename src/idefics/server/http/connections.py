"""One client's connection, which is closed when the client keeps the server waiting.

Uvicorn waits only for the next request after an answer. A client that sends nothing at all, half a request, or the rest of a
body that was refused, and one that does not read its answer, would each hold a file descriptor for ever.
"""

from __future__ import annotations

import asyncio
import struct
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if sys.platform != "win32":
    import fcntl
    import resource
    import termios

__all__ = ["REQUEST_SECONDS", "Connection", "most_connections", "raise_file_limit"]

REQUEST_SECONDS = 15.0
"""In which a request's line and headers must have come, and after a refusal what is left of its body."""

_MOST = 4096
_FILES = 65_536


def raise_file_limit() -> None:
    """Lets the process open as many files as it may: each connection takes one."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Connections that are taken at once; the other half of the files is for images, weights and logs."""
    if sys.platform == "win32":
        return _MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, max(1, soft // 2))


class Connection(H11Protocol):
    """Uvicorn's connection, with an end to every wait; `let_go` must be called now and then."""

    _waited: tuple[str, int] | None = None
    _since = 0.0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or closes it at once if there are too many."""
        if len(self.connections) >= most_connections():
            self._refused = True
            transport.abort()
            return
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if not self._refused:
            super().connection_lost(exc)

    def let_go(self, now: float, *, send_seconds: float) -> None:
        """Closes the connection if its client has kept the server waiting for too long.

        Args:
            now: `time.monotonic`.
            send_seconds: that a client may leave a piece of its answer unread.
        """
        waited = self._waits()
        if waited != self._waited:
            self._waited, self._since = waited, now
        elif waited is not None and now - self._since > (send_seconds if waited[0] == "reader" else REQUEST_SECONDS):
            self.transport.abort()  # to close it would wait for the reader

    def _waits(self) -> tuple[str, int] | None:
        """For what of the client, and how much of it is missing if that is known: who gets on is waited for."""
        unread = self.transport.get_write_buffer_size()
        if unread:
            return "reader", unread + self._on_its_way()
        begun, _ = self.conn.trailing_data
        if self.conn.their_state is h11.IDLE and (begun or self.timeout_keep_alive_task is None):
            return "headers", 0
        if self.conn.their_state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete:
            return "body", 0
        return None

    def _on_its_way(self) -> int:
        """Bytes that the kernel has taken and the client has not: they show that a slow reader reads."""
        sock = self.transport.get_extra_info("socket")
        if sys.platform == "win32":
            return 0
        try:
            return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
        except OSError:  # not this kind of system
            return 0
