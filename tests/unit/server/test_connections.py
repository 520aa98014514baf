"""Clients that keep the server waiting: with a request that never comes, or with an answer that they do not read."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from fake_engine import FakeEngine
from fake_server import fake_server
from idefics.server.http import connections
from idefics.server.http.connections import most_connections, raise_file_limit
from idefics.server.limits import ServerLimits
from idefics.server.run import LAST_SECONDS, Server, configuration
from serving import fake_app, script, wait_until

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def served(app: Any) -> Iterator[tuple[int, Server]]:
    """The port of a server as `run` makes it, in a thread of this process."""
    server = Server(configuration(app), app.state.service)
    with socket.create_server(("127.0.0.1", 0)) as at:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, seconds=30)
        try:
            yield at.getsockname()[1], server
        finally:
            server.should_exit = True
            thread.join(timeout=LAST_SECONDS + 30)
            assert not thread.is_alive(), "the server does not stop"


def closed(connection: socket.socket) -> bool:
    """Whether the server has ended a connection of which nothing more is to be read."""
    connection.settimeout(20)
    try:
        return connection.recv(4096) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /hea", HEALTH + b"GET /hea", b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\na"],
    ids=["nothing", "half a line", "half a second line", "a body that nobody reads"],
)
def test_a_request_that_does_not_come_is_not_waited_for(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with served(fake_app(FakeEngine(script()))) as (port, server), socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(sent)
        wait_until(lambda: bool(server.server_state.connections))
        silent.settimeout(20)
        while b" HTTP/1.1\r\n" in sent and b"\r\n\r\n" not in silent.recv(4096):
            pass  # the answer to what was whole
        assert closed(silent)
        wait_until(lambda: not server.server_state.connections)


def test_who_gets_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with served(fake_app(FakeEngine(script(), step_seconds=0.7))) as (port, _), httpx.Client() as client:
        for _ in range(2):
            assert client.post(f"http://127.0.0.1:{port}/generate", json={"inputs": "a"}, timeout=60).status_code == 200


def unread(port: int, path: str) -> socket.socket:
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", port))
    slow.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return slow


def large(app: Any) -> None:
    """Adds an answer that no buffer of the kernel holds."""
    app.router.add_route("/large", lambda _: Response(b"a" * 2**24))


def test_an_answer_that_is_not_read_is_not_kept() -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(send_seconds=0.5))
    large(app)
    with served(app) as (port, server), unread(port, "/large"):
        wait_until(lambda: bool(server.server_state.connections))
        wait_until(lambda: not server.server_state.connections, seconds=20)


def test_an_answer_that_is_read_slowly_is_sent_whole() -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(send_seconds=5.0))
    large(app)
    with served(app) as (port, _), unread(port, "/large") as slow:
        read, began = 0, time.monotonic()
        while time.monotonic() < began + 7:  # longer than a piece may stay unread
            read += len(slow.recv(4096))
            time.sleep(0.05)
        while read < 2**24:
            piece = slow.recv(2**20)
            assert piece
            read += len(piece)


def test_more_connections_than_files_are_refused_and_the_rest_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    with served(fake_app(FakeEngine(script()))) as (port, server):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        wait_until(lambda: len(server.server_state.connections) == 3)
        with socket.create_connection(("127.0.0.1", port)) as refused:
            assert closed(refused)
        silent[0].sendall(HEALTH)
        assert silent[0].recv(4096).startswith(b"HTTP/1.1 200")
        for each in silent:
            each.close()


def test_the_limit_of_files_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(100, 5_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert most_connections() == 50
    raise_file_limit()
    raise_file_limit()
    assert limits == [(100, 5_000), (5_000, 5_000)]
    assert most_connections() == 2_500


def test_idle_connections_do_not_take_the_server_from_others() -> None:
    with fake_server(files=(120, 120)) as server:
        idle = []
        for _ in range(150):
            idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        wait_until(_healthy(server.address), seconds=connections.REQUEST_SECONDS + 40)
        for each in idle:
            each.close()


def _healthy(address: str) -> Callable[[], bool]:
    def healthy() -> bool:
        try:
            return httpx.get(f"{address}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    return healthy
