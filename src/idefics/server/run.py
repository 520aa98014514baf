"""An application on a socket, until somebody stops it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from idefics.errors import OptionError

__all__ = ["bound", "run"]


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


def run(
    app: Any,
    at: socket.socket,
    *,
    tls: tuple[Path, Path] | None = None,
    drain: float,
    listening: Callable[[int], None],
) -> None:
    """Serves until Ctrl-C or SIGTERM, then lets open requests end.

    Args:
        app: ASGI application.
        at: from `bound`; closed in the end.
        tls: certificate and private key.
        drain: seconds that open requests get.
        listening: told the port once connections are taken.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(drain + 5)),
            ssl_certfile=None if tls is None else str(tls[0]),
            ssl_keyfile=None if tls is None else str(tls[1]),
            h11_max_incomplete_event_size=64 * 1024,
        )
    )
    with at, _stopped_in_order():
        at.listen(2048)
        listening(at.getsockname()[1])
        server.run(sockets=[at])


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Uvicorn raises the signal that stopped it once more when all is done; by then it has had its effect."""
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(kind, lambda *_: None) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
