"""Clients that keep the server waiting: with a request that never comes, or with an answer that they do not read."""

from __future__ import annotations

import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from fake_engine import FakeEngine
from fake_server import fake_server
from idefics.server.deadlines import ANSWERS_SENT
from idefics.server.http import connections
from idefics.server.http.connections import most_connections, raise_file_limit
from idefics.server.limits import ServerLimits
from idefics.server.run import Server, configuration, tls_context
from serving import certificate, fake_app, script, wait_until

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def served(app: Any, *, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, Server]]:
    """The port of a server as `run` makes it, in a thread of this process."""
    server = Server(configuration(app, tls=tls), app.state.service)
    with socket.create_server(("127.0.0.1", 0)) as at:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, seconds=30)
        try:
            yield at.getsockname()[1], server
        finally:
            server.should_exit = True
            thread.join(timeout=ANSWERS_SENT + 30)
            assert not thread.is_alive(), "the server does not stop"


def closed(connection: socket.socket) -> bool:
    """Whether the server has ended a connection of which nothing more is to be read."""
    connection.settimeout(20)
    try:
        return connection.recv(4096) == b""
    except ConnectionError:
        return True


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


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


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_idle_connections_do_not_take_the_server_from_others(secure: bool, certified: tuple[Path, Path]) -> None:
    options = {"tls": list(map(str, certified))} if secure else {}
    with fake_server(files=(256, 256), request_seconds=3, thread=True, **options) as server:
        idle = []
        for _ in range(400):
            idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        wait_until(_healthy(server.address, trusting(certified[0])), seconds=40)
        for each in idle:
            each.close()


def _healthy(address: str, trusted: ssl.SSLContext) -> Callable[[], bool]:
    def healthy() -> bool:
        try:
            return httpx.get(f"{address}/health", timeout=5, verify=trusted).status_code == 200
        except httpx.TransportError:
            return False

    return healthy


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a handshake begins


@pytest.mark.parametrize("sent", [b"", HELLO, HEALTH], ids=["nothing", "half a hello", "no handshake"])
def test_a_handshake_that_does_not_come_is_not_waited_for(
    sent: bytes, certified: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(connections, "most_connections", lambda: 1)
    with served(fake_app(FakeEngine(script())), tls=tls_context(*certified)) as (port, server):
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(sent)
            if sent != HEALTH:  # which is no handshake, as can be seen at once
                wait_until(lambda: len(server.server_state.connections) == 1)
                with socket.create_connection(("127.0.0.1", port)) as refused:
                    assert closed(refused), "it is counted before it has begun"
            silent.settimeout(20)
            try:
                while silent.recv(4096):
                    pass  # an alert
            except ConnectionError:
                pass
        wait_until(lambda: not server.server_state.connections)
        secure = trusting(certified[0])
        assert httpx.get(f"https://127.0.0.1:{port}/health", verify=secure).status_code == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("slowly", [b"", HEALTH[:-2] + b"A" * 1_000], ids=["nothing", "a byte at a time"])
def test_a_request_must_come_in_time_however_it_comes(
    secure: bool, slowly: bytes, certified: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    tls = tls_context(*certified) if secure else None
    with served(fake_app(FakeEngine(script())), tls=tls) as (port, server):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            client = trusting(certified[0]).wrap_socket(plain, server_hostname="127.0.0.1") if secure else plain
            began = time.monotonic()
            try:
                for byte in slowly:
                    client.sendall(bytes([byte]))
                    time.sleep(0.02)
            except OSError:
                pass
            assert closed(client)
            assert time.monotonic() < began + 10
            client.close()
        wait_until(lambda: not server.server_state.connections)


def test_a_secure_connection_is_kept_for_more_requests(certified: tuple[Path, Path]) -> None:
    tls, secure = tls_context(*certified), trusting(certified[0])
    with served(fake_app(FakeEngine(script())), tls=tls) as (port, server), httpx.Client(verify=secure) as client:
        for _ in range(3):
            answer = client.post(f"https://127.0.0.1:{port}/generate", json={"inputs": "a" * 100})
            assert answer.json() == {"generated_text": " the red image"}
        assert len(server.server_state.connections) == 1


def asked(path: str = "/generate", body: bytes = b'{"inputs": "a"}', version: str = "1.1") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/none"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_ends_its_side_after_asking_is_answered(path: str, version: str) -> None:
    engine = FakeEngine(script(), step_seconds=0.1)
    with served(fake_app(engine)) as (port, server):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(asked(path, version=version))
            client.shutdown(socket.SHUT_WR)
            answer = read(client)
        status = b"404" if path == "/none" else b"200"
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"HTTP/1.1") == 1
        assert path == "/none" or b"the red image" in answer
        wait_until(lambda: not server.server_state.connections)
    assert engine.cancelled == []


def test_pipelined_requests_are_all_answered_to_who_ends_its_side() -> None:
    app = fake_app(FakeEngine(script(), step_seconds=0.05))
    with served(app) as (port, _), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(asked() * 3)
        client.shutdown(socket.SHUT_WR)
        assert read(client).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_who_leaves_is_noticed_still(path: str) -> None:
    engine = FakeEngine(script("the red image " * 1_000), step_seconds=0.02)
    with served(fake_app(engine)) as (port, server):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(asked(path, b'{"inputs": "a", "parameters": {"max_new_tokens": 400}}'))
            wait_until(lambda: engine.busy)
        wait_until(lambda: bool(engine.cancelled), seconds=2)
        wait_until(lambda: not server.server_state.connections)


def test_half_a_request_is_not_waited_for_once_its_client_has_ended_its_side() -> None:
    with served(fake_app(FakeEngine(script()))) as (port, server):
        for half in (b"", b"GET /hea", asked()[:-5], HEALTH):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(half)
                time.sleep(0.1)  # so that an answer is over
                client.shutdown(socket.SHUT_WR)
                assert (b"200" in read(client)) == (half == HEALTH)
        wait_until(lambda: not server.server_state.connections)


ENDLESS = b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"


@pytest.mark.parametrize("head", [ENDLESS, LONG], ids=["without an end", "too long to be read"])
def test_a_refused_body_without_an_end_is_cut_off_at_once(head: bytes) -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(body_bytes=100_000))
    with served(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(head)
        began, sent = time.monotonic(), 0
        chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        try:
            while time.monotonic() < began + 20:
                sent += client.send(chunk[sent % len(chunk) :])
        except ConnectionError:
            pass
        assert time.monotonic() < began + 5
        assert sent < 2**25, "the server read on"


def test_the_answer_to_a_body_without_an_end_can_be_read() -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(body_bytes=100_000))
    with served(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(ENDLESS + 2 * (b"10000\r\n" + b" " * 65_536 + b"\r\n"))
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
        assert closed(client) or closed(client)
