"""Every request has one place, from before anything is done for it; what does not fit is told at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from idefics.server.limits import ServerLimits
from serving import fake_app, image_host, png, script, serving, wait_until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/": {"inputs": "a"},
    "/invocations": {"inputs": "a"},
    "/generate": {"inputs": "a"},
    "/generate_stream": {"inputs": "a"},
    "/tokenize": {"inputs": "a"},
    "/chat_tokenize": CHAT,
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "a"},
    "/playground/plan": CHAT,
}


@contextmanager
def busy_workers(app: Any) -> Iterator[None]:
    """The threads that prepare prompts have something else to do."""
    done = threading.Event()
    preparer = app.state.service.preparer
    for _ in range(app.state.service.limits.workers):
        preparer._crew._threads.submit(done.wait)
    try:
        yield
    finally:
        done.set()


def test_who_waits_for_a_worker_has_a_place_and_nobody_else_waits() -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(requests=2, workers=1))
    statuses: list[int] = []

    def ask(address: str, path: str) -> None:
        statuses.append(httpx.post(address + path, json=BODIES[path], timeout=60).status_code)

    with serving(app) as address, httpx.Client(timeout=60) as client:
        with busy_workers(app):
            waiting = [threading.Thread(target=ask, args=(address, path)) for path in ("/v1/chat/completions", "/tokenize")]
            for thread in waiting:
                thread.start()
            wait_until(lambda: app.state.service.open == 2)
            for path, body in BODIES.items():
                assert client.post(address + path, json=body).status_code == 429, path
        for thread in waiting:
            thread.join()
        assert statuses == [200, 200]
        wait_until(lambda: app.state.service.open == 0)
        for path, body in BODIES.items():
            assert client.post(address + path, json=body).status_code == 200, path


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat_tokenize", "/generate"])
def test_who_leaves_while_workers_are_busy_is_forgotten(path: str) -> None:
    app = fake_app(FakeEngine(script()))
    with serving(app) as address, httpx.Client() as client, busy_workers(app):
        service = app.state.service
        seen: list[int] = []
        admitted = service.admitted
        service.admitted = lambda: (seen.append(1), admitted())[1]
        with pytest.raises(httpx.ReadTimeout):
            client.post(address + path, json=BODIES[path], timeout=httpx.Timeout(30, read=1))
        wait_until(lambda: bool(seen) and service.open == 0)


def test_time_is_over_while_workers_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics.server.http.routes.ROUTE_SAYS", 0.0)
    app = fake_app(FakeEngine(script()), limits=ServerLimits(deadline=0.3))
    with serving(app) as address, busy_workers(app):
        assert httpx.post(f"{address}/tokenize", json=BODIES["/tokenize"], timeout=60).status_code == 504


def test_the_prompts_of_a_request_have_one_place() -> None:
    engine = FakeEngine(script())
    app = fake_app(engine, limits=ServerLimits(requests=2))
    with serving(app) as address:
        for stream in (False, True):
            body = {"prompt": ["a", "b", "c", "d"], "stream": stream}
            assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code == 200
        wait_until(lambda: app.state.service.open == 0)
    assert len(engine.seen) == 8


def test_a_stuck_engine_is_told_before_images_are_fetched() -> None:
    engine = FakeEngine(script())
    engine.hold.clear()
    app = fake_app(engine, limits=ServerLimits(stuck_after=0.2, drain=0))
    with serving(app) as address, image_host({"/a.png": (200, {}, png())}) as host:
        asking = threading.Thread(target=lambda: httpx.post(f"{address}/generate", json={"inputs": "a"}, timeout=60))
        asking.start()
        wait_until(lambda: not app.state.service.bridge.healthy)
        fetched: list[Any] = []
        app.state.service.images.fetch = fetched.append
        refused = httpx.post(f"{address}/generate", json={"inputs": f"![]({host}/a.png)"}, timeout=60)
        assert (refused.status_code, fetched) == (503, [])
        engine.hold.set()
        asking.join()
