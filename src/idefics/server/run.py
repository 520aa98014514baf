"""An application on a socket, until somebody stops it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from idefics.errors import OptionError

__all__ = ["run"]


def run(
    app: Any,
    *,
    host: str,
    port: int,
    tls: tuple[Path, Path] | None = None,
    drain: float,
    listening: Callable[[int], None],
) -> None:
    """Serves until Ctrl-C or SIGTERM, then lets open requests end.

    Args:
        app: ASGI application.
        host: address to listen at.
        port: 0 takes any free one.
        tls: certificate and private key.
        drain: seconds that open requests get.
        listening: told the port once connections are taken.

    Raises:
        OptionError: the address cannot be listened at.
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
    bound = _bound(host, port)
    listening(bound.getsockname()[1])
    with bound:
        server.run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        raise OptionError(f"{host} port {port} cannot be listened at: {error.strerror or error}") from None
    return found
