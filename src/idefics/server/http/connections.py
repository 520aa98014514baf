"""One client's connection, which is closed when the client keeps the server waiting.

Uvicorn waits only for the next request after an answer. A client that sends nothing at all, half a handshake, half a request,
or the rest of a body that was refused, and one that does not read its answer, would each hold a file descriptor for ever.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import struct
import sys

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if sys.platform != "win32":
    import fcntl
    import resource
    import termios

__all__ = ["REQUEST_SECONDS", "Connection", "Settings", "most_connections", "raise_file_limit"]

REQUEST_SECONDS = 15.0
"""In which a TLS handshake must be over, a request's line and headers have come, and after a refusal the rest of its body."""
LEFT_BYTES = 2**26
"""Of a refused body, told beforehand, that are still read, so that its client gets to reading the answer."""
LEAVE_SECONDS = 1.0
"""In which the answer to any other refused body must have been read."""
LOOK_SECONDS = 0.1
"""Between two looks whether a client that has ended its side is still there."""

_BEGINNING = b"HTTP/1.1 "  # of every answer
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


class _Begun(asyncio.Transport):
    """A transport over which an answer's first bytes have gone already."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._begun = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends the rest."""
        if self._begun:
            assert bytes(data[: len(_BEGINNING)]) == _BEGINNING
            self._begun, data = False, data[len(_BEGINNING) :]
        self._transport.write(data)

    def close(self) -> None:
        """Closes the connection once all is sent."""
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it is closed or will be."""
        return self._transport.is_closing()


class Settings(uvicorn.Config):
    """Uvicorn's settings for `Connection`, which does TLS itself.

    Attributes:
        tls: what https needs; None for http. Uvicorn is not told: it would hand over connections after their handshakes, and
            count none of those that never begin one.
    """

    tls: ssl.SSLContext | None = None


class Connection(H11Protocol):
    """Uvicorn's connection, with an end to every wait; `let_go` must be called now and then."""

    _waited: tuple[str, int] | None = None
    _since = 0.0
    _refused = False
    _ended = False  # by the client, for its own side: it can still read
    _handshake: asyncio.Task[None] | None = None
    _early: bytearray | None = None  # what came with the handshake's end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or closes it at once if there are too many."""
        if len(self.connections) >= most_connections():
            self._refused = True
            transport.abort()
            return
        tls = self.config.tls if isinstance(self.config, Settings) else None
        if tls is None:
            super().connection_made(transport)
            return
        self.transport = transport
        self.connections.add(self)
        self._early = bytearray()
        self._handshake = self.loop.create_task(self._secured(transport, tls))

    async def _secured(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        seconds = REQUEST_SECONDS
        try:
            secure = await self.loop.start_tls(
                transport, self, tls, server_side=True, ssl_handshake_timeout=seconds, ssl_shutdown_timeout=seconds
            )
        except OSError:  # no TLS, or nothing in time
            secure = None
        if secure is None or secure.is_closing():  # the client left
            transport.abort()
            self.connections.discard(self)
            return
        early, self._early = self._early, None
        super().connection_made(secure)
        if early:
            self.data_received(bytes(early))

    def data_received(self, data: bytes) -> None:
        """Takes what came."""
        if self._early is None:
            super().data_received(data)
        else:
            self._early += data

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keeps the connection for an answer that is due: who has asked may have nothing more to say. Not within TLS."""
        if self._ended:
            return True
        due = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        if not due or self.scheme == "https":
            return None
        self._ended = True
        if not self.cycle.response_started:
            # Who has left altogether looks the same from here until something is sent. All answers begin alike.
            self.transport.write(_BEGINNING)
            self.cycle.transport = _Begun(self.transport)
        self._look()
        return True

    def _look(self) -> None:
        """Ends the connection once the client's side says that nobody is there any more, of which no reader hears."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(LOOK_SECONDS, self._look)

    def on_response_complete(self) -> None:
        """Goes on with the next request; what is left of a body that was refused is not read if it may have no end."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._ended and self.cycle.response_complete:  # of pipelined requests, the last
            self.transport.close()
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete and self._body_bytes() > LEFT_BYTES:
            self.flow.pause_reading()
            self.loop.call_later(LEAVE_SECONDS, self.transport.abort)  # by then the answer has come

    def _body_bytes(self) -> float:
        """As many as the request's body was said to have."""
        told = [value for name, value in self.headers if name == b"content-length"]
        return int(told[0]) if told else math.inf

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
        if self._early is not None:
            return None  # a handshake has its own time
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
