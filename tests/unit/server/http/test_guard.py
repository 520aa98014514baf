"""What stands before the routes: keys, bodies that are held, and errors that nobody meant to raise."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from fake_engine import FakeEngine
from idefics.errors import OptionError
from idefics.server.app import error_response
from idefics.server.http.guard import Guard
from idefics.server.limits import ServerLimits
from serving import fake_app, script, serving

BODY: dict[str, Any] = {"inputs": "a", "parameters": {"max_new_tokens": 400}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400}


def test_keys() -> None:
    with serving(fake_app(FakeEngine(script()), api_keys=["one", "two"])) as address, httpx.Client() as client:
        for path in ("/", "/health", "/metrics"):
            assert client.get(address + path).status_code == 200
        assert client.post(f"{address}/", json=BODY).status_code == 401
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "one"}, {"authorization": "Bearer"}):
            assert client.get(f"{address}/info", headers=headers).status_code == 401
            refused = client.post(f"{address}/v1/chat/completions", json=CHAT, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for key in ("one", "two"):
            assert client.get(f"{address}/info", headers={"authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    ("key", "told"),
    [("", "is empty"), ("open sesame", "holds blanks"), (" sesame", "holds blanks"), ("schl\u00fcssel", "beyond ASCII")],
)
def test_keys_that_nobody_or_anybody_could_send_are_refused(key: str, told: str) -> None:
    with pytest.raises(OptionError, match=told) as refused:
        fake_app(FakeEngine(script()), api_keys=["good", key])
    assert "API key 2 of 2" in str(refused.value)
    assert not key or key not in str(refused.value)


def test_a_key_beyond_ascii_is_a_wrong_one() -> None:
    with serving(fake_app(FakeEngine(script()), api_keys=["key"])) as address:
        wrong = {"authorization": "Bearer k\u00e9y".encode()}
        assert httpx.get(f"{address}/info", headers=wrong).status_code == 401


def test_a_body_is_held_until_it_is_handed_over() -> None:
    engine = FakeEngine(script("the red image " * 30), step_seconds=0.05)
    padded = json.dumps(BODY).encode() + b" " * 8_000
    kind = {"content-type": "application/json"}
    with serving(fake_app(engine, limits=ServerLimits(held_bytes=10_000))) as address:
        url = f"{address}/generate_stream"
        with (
            httpx.stream("POST", url, content=padded, headers=kind) as first,
            httpx.stream("POST", url, content=padded, headers=kind) as second,
        ):
            assert engine.busy
            assert (first.status_code, second.status_code) == (200, 200)


def test_who_sends_nothing_is_never_too_much() -> None:
    async def both() -> list[int]:
        statuses: list[int] = []
        refusing = asyncio.Event()
        let = asyncio.Event()
        guard = Guard(
            PlainTextResponse("well"), limits=ServerLimits(held_bytes=10), api_keys=(), error=error_response,
            counted=statuses.append,
        )  # fmt: skip

        async def ask(body: bytes, *, waits: bool) -> None:
            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: Any) -> None:
                del message
                if waits:
                    refusing.set()
                    await let.wait()

            await guard({"type": "http", "method": "GET", "path": "/health", "headers": []}, receive, send)

        large = asyncio.create_task(ask(b"a" * 100, waits=True))
        await refusing.wait()
        await ask(b"", waits=False)
        let.set()
        await large
        return statuses

    assert asyncio.run(both()) == [200, 429]


def test_an_error_that_nobody_meant_to_raise_is_told_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    app = fake_app(FakeEngine(script()), cors=["https://a.b"])

    async def fails(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(app.state.service.preparer, "prepare", fails)
    asking = {"origin": "https://a.b", "x-request-id": "r-1"}
    with serving(app) as address:
        plain = httpx.post(f"{address}/generate", json=BODY, headers=asking)
        chat = httpx.post(f"{address}/v1/chat/completions", json=CHAT, headers=asking)
        page = httpx.get(f"{address}/metrics").text
    told = "RuntimeError; the server's log tells more"
    assert plain.json()["error_type"] == "internal"
    assert told in plain.json()["error"]
    assert chat.json()["error"] == {"message": told, "type": "server_error", "param": None, "code": None}
    for response in (plain, chat):
        assert response.status_code == 500
        assert response.headers["x-request-id"] == "r-1"
        assert response.headers["access-control-allow-origin"] == "https://a.b"
    assert 'idefics_http_responses_total{status="500"} 2.0' in page
    assert 'tgi_request_failure{err="internal"} 2.0' in page


@pytest.mark.parametrize(("path", "body"), [("/generate_stream", BODY), ("/v1/chat/completions", {**CHAT, "stream": True})])
def test_who_is_gone_before_the_first_event_is_forgotten(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine(script("the red image " * 30), step_seconds=0.02)
    app = fake_app(engine)

    async def ask() -> None:
        bodies = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not bodies:
                await asyncio.Event().wait()
            return bodies.pop()

        async def send(message: Any) -> None:
            del message
            raise OSError("gone")

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "root_path": "", "server": ("x", 80),
            "client": ("x", 1), "asgi": {"version": "3.0"},
        }  # fmt: skip
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            assert app.state.service.open == 0
            async with asyncio.timeout(20):
                while not engine.cancelled:
                    await asyncio.sleep(0.01)

    gc.disable()  # which would close what the response forgets, some time later
    try:
        asyncio.run(ask())
    finally:
        gc.enable()
