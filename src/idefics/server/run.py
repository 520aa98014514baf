"""An application on a socket, until somebody stops it or its engine is given up."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from idefics.errors import OptionError
from idefics.server.deadlines import ANSWERS_SENT
from idefics.server.http.connections import Connection, Settings, raise_file_limit
from idefics.server.service import Service

__all__ = ["Server", "bound", "configuration", "run", "tls_context"]

log = logging.getLogger(__name__)
QUEUED = 2048  # connections that the kernel keeps until they are taken
# Connections taken in one turn of the event loop. Each is a file, and only after its turn it is refused if it is one too many;
# if files run out in between, asyncio logs an error for every other one of them.
ACCEPTED = 8


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address; it refuses connections until `run` listens.

    Args:
        host: address to listen at.
        port: 0 takes any free one.

    Raises:
        OptionError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        raise OptionError(f"{host} port {port} cannot be listened at: {getattr(error, 'strerror', None) or error}") from None
    return found


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What https needs.

    Args:
        cert: certificate chain (PEM).
        key: its private key (PEM), without a pass phrase.

    Raises:
        OptionError: they cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs the server more than the client
    try:
        context.load_cert_chain(cert, key, password="")  # one that asks for a pass phrase would wait for a terminal
    except OSError as error:  # SSLError is one
        raise OptionError(
            f"certificate {cert} and key {key} cannot be used: {error.strerror or error}; "
            "give a PEM certificate and its key without a pass phrase"
        ) from None
    return context


def run(
    app: Any,
    at: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    listening: Callable[[int], None],
) -> int:
    """Serves until Ctrl-C or SIGTERM, or until the engine is given up; then lets open requests end.

    Args:
        app: from `create_app`.
        at: from `bound`; closed in the end.
        tls: from `tls_context`, for https.
        listening: told the port once connections are taken.

    Returns:
        The process's exit code: 0, or 1 if the engine was given up, so that whoever started the server starts it again.
    """
    config = configuration(app, tls=tls)
    raise_file_limit()
    service: Service = app.state.service
    server = Server(config, service)
    service.warm()
    with at, _stopped_in_order(server):
        at.listen(QUEUED)
        listening(at.getsockname()[1])
        server.run(sockets=[at])
    code = 0 if server.fault is None else 1
    if service.bridge.alive:  # within a step, which nothing can end: the interpreter's own end could wait for it
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def configuration(app: Any, *, tls: ssl.SSLContext | None = None) -> Settings:
    """Uvicorn's settings, loaded."""
    config = Settings(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=ACCEPTED,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=ANSWERS_SENT,
        h11_max_incomplete_event_size=64 * 1024,
    )
    config.load()
    config.tls = tls
    return config


class Server(uvicorn.Server):
    """Uvicorn's server, which stops with its engine, and listens while it drains so that `/health` can tell.

    Attributes:
        fault: why the engine was given up, if it was.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.fault: str | None = None
        self._service = service
        # By then the time of every request in the engine is over; a step that is merely slow is not worth a restart.
        self._patience = service.limits.stuck_after + service.limits.deadline
        self._overdue = 0  # ticks

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(QUEUED)  # asyncio has made the kernel's queue as short as its own turn

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True stops the server."""
        if counter % 10 == 0:
            self._let_go()
        bridge = self._service.bridge
        if bridge.fault is not None:
            self.fault = bridge.fault
        else:  # for a second: a process that was stopped itself hears what was said meanwhile first
            self._overdue = self._overdue + 1 if bridge.step_seconds > self._patience else 0
            if self._overdue > 10:
                self.fault = f"the engine has taken more than {self._patience:g} s for a step, or to say that it is there"
        if self.fault is not None:
            log.critical("the server stops and must be started again: %s", self.fault)
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains, then stops listening."""
        service = self._service
        draining = asyncio.ensure_future(service.drain() if self.fault is None else service.bridge.close(drain=0))
        while not draining.done() and not self.force_exit:
            self._let_go()
            await asyncio.wait({draining}, timeout=0.1)
        await super().shutdown(sockets)

    def _let_go(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.let_go(time.monotonic(), send_seconds=self._service.limits.send_seconds)


@contextmanager
def _stopped_in_order(server: uvicorn.Server) -> Iterator[None]:
    """Signals that come before uvicorn listens to them count, and those that it raises once more in the end do not."""

    def stop(*_: object) -> None:
        server.should_exit = True

    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(kind, stop) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
