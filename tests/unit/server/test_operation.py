"""What happens when clients leave, come in crowds or read slowly, and when the engine is stuck, fails or is stopped."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from idefics.server.limits import ServerLimits
from idefics.server.logs import JsonLines
from serving import data_url, fake_app, image_host, png, script, serving, wait_until

LONG = script("the red image " * 30)
BODY: dict[str, Any] = {"inputs": "a", "parameters": {"max_new_tokens": 400}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400}


def head(path: str, body: bytes) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode()


def leave(address: str, path: str, body: dict[str, Any], engine: FakeEngine, *, after: bytes) -> None:
    """Sends a request, reads until `after` has come and the engine has it, and hangs up."""
    host, port = address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head(path, data) + data)
        seen = b""
        while after not in seen:
            seen += connection.recv(4096)
        wait_until(lambda: engine.busy)


@pytest.mark.parametrize(
    ("path", "body", "after"),
    [
        ("/generate_stream", BODY, b'"index":3'),
        ("/v1/chat/completions", {**CHAT, "stream": True}, b"chunk"),
        ("/generate", BODY, b""),
        ("/v1/chat/completions", CHAT, b""),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 400}, b""),
    ],
)
def test_who_leaves_is_cancelled(path: str, body: dict[str, Any], after: bytes) -> None:
    engine = FakeEngine(LONG, step_seconds=0.02)
    app = fake_app(engine)
    with serving(app) as address:
        leave(address, path, body, engine, after=after)
        wait_until(lambda: bool(engine.cancelled))
        wait_until(lambda: not engine.busy and app.state.service.open == 0, seconds=2)
        wait_until(lambda: b'tgi_request_failure{err="cancelled"}' in httpx.get(f"{address}/metrics").content)
        assert httpx.post(f"{address}/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}}).status_code == 200


def test_too_many_are_told_to_come_back() -> None:
    engine = FakeEngine(script())
    engine.hold.clear()
    app = fake_app(engine, limits=ServerLimits(requests=2))
    with serving(app) as address, httpx.Client() as client:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/generate", json=BODY).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: app.state.service.open == 2)
        for path, body in (("/generate", BODY), ("/generate_stream", BODY), ("/v1/chat/completions", CHAT)):
            refused = client.post(address + path, json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error_type"] == "overloaded"
        assert client.post(f"{address}/generate", json=BODY).json() == {
            "error": "Model is overloaded",
            "error_type": "overloaded",
        }
        engine.hold.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert client.post(f"{address}/generate", json=BODY).status_code == 200


def test_a_stuck_engine_is_unhealthy_and_takes_nobody() -> None:
    engine = FakeEngine(script())
    engine.hold.clear()
    limits = ServerLimits(stuck_after=0.2, deadline=1.0, drain=0)
    with serving(fake_app(engine, limits=limits)) as address, httpx.Client() as client:
        assert client.get(f"{address}/health").status_code == 200
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/generate", json=BODY, timeout=20)))
        asking.start()
        wait_until(lambda: client.get(f"{address}/health").status_code == 503)
        assert client.get(f"{address}/health").json() == {"error": "unhealthy", "error_type": "healthcheck"}
        refused = client.post(f"{address}/generate", json=BODY)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        asking.join()  # whose time is over though the engine never answers
        assert answers[0].status_code == 504
        assert answers[0].json()["error_type"] == "timeout"
        engine.hold.set()
        wait_until(lambda: client.get(f"{address}/health").status_code == 200)


def test_a_deadline_ends_an_answer_in_a_stream_too() -> None:
    engine = FakeEngine(LONG, step_seconds=0.05)
    with serving(fake_app(engine, limits=ServerLimits(deadline=0.4))) as address:
        response = httpx.post(f"{address}/generate_stream", json=BODY)
        assert json.loads(response.text.split("data: ")[-1]) == {
            "error": "the request's time is over",
            "error_type": "timeout",
        }
        assert httpx.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 504


def test_a_failing_step_fails_its_requests_and_no_others() -> None:
    engine = FakeEngine(script())
    with serving(fake_app(engine)) as address, httpx.Client() as client:
        engine.fail_step = RuntimeError("a bug")
        failed = client.post(f"{address}/generate", json=BODY)
        assert failed.status_code == 424
        assert "a bug" not in failed.text, "what went wrong inside stays inside"
        engine.fail_step = None
        assert client.post(f"{address}/generate", json=BODY).status_code == 200
        engine.fail_step = RuntimeError("a bug")
        for _ in range(3):
            client.post(f"{address}/generate", json=BODY)
        assert client.get(f"{address}/health").status_code == 503
        assert client.post(f"{address}/generate", json=BODY).status_code == 503


def test_stopping_lets_answers_end() -> None:
    engine = FakeEngine(LONG, step_seconds=0.01)
    answers: list[httpx.Response] = []
    with serving(fake_app(engine)) as address:
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/generate", json=BODY, timeout=30)))
        asking.start()
        wait_until(lambda: engine.busy)
    asking.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["generated_text"]) > 100


def test_stopping_does_not_wait_for_ever() -> None:
    engine = FakeEngine(LONG, step_seconds=0.2)
    app = fake_app(engine, limits=ServerLimits(drain=0.3))

    async def stop() -> None:
        service = app.state.service
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                asking = asyncio.create_task(client.post("/generate", json=BODY))
                while not engine.busy:
                    await asyncio.sleep(0.01)
                began = time.monotonic()
                await service.close()
                assert time.monotonic() - began < 3
                assert (await asking).status_code == 503
                assert (await client.get("/health")).status_code == 503

    asyncio.run(stop())
    assert engine.cancelled


def test_a_slow_reader_is_let_go_and_holds_nobody_up() -> None:
    engine = FakeEngine(script("the red image " * 25))
    limits = ServerLimits(send_seconds=0.3)
    app = fake_app(engine, limits=limits)
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 400, "top_n_tokens": 20}}).encode()
    with serving(app) as address:
        host, port = address.removeprefix("http://").split(":")
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((host, int(port)))
        slow.sendall(head("/generate_stream", body) + body)
        assert httpx.post(f"{address}/generate", json={"inputs": "a"}).status_code == 200
        wait_until(lambda: app.state.service.open == 0)  # the engine is done with it though nobody has read it
        wait_until(lambda: not engine.busy)
        slow.close()


def test_bodies_are_bounded() -> None:
    limits = ServerLimits(body_bytes=10_000, body_seconds=0.3)
    with serving(fake_app(FakeEngine(script()), limits=limits)) as address:
        large = httpx.post(f"{address}/generate", json={"inputs": "a" * 20_000})
        assert large.status_code == 413
        assert "10000 bytes" in large.json()["error"]

        def chunks() -> Any:
            for _ in range(100):
                yield b"a" * 1000

        chunked = httpx.post(f"{address}/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"})
        assert chunked.status_code == 413
        assert chunked.json()["error"]["code"] == "request_too_large"
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 504 " in slow.recv(4096)


def test_bodies_are_bounded_together() -> None:
    limits = ServerLimits(held_bytes=10_000, body_seconds=5)
    with serving(fake_app(FakeEngine(script()), limits=limits)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(head("/generate", b"x" * 9_000) + b"x" * 8_000)
            small = {"inputs": "a"}
            wait_until(lambda: httpx.post(f"{address}/generate", json={**small, "x": "y" * 4_000}).status_code == 429)
            assert httpx.post(f"{address}/generate", json=small).status_code == 200
        wait_until(lambda: httpx.post(f"{address}/generate", json={**small, "x": "y" * 4_000}).status_code == 200)


def test_what_strangers_send_costs_one_request() -> None:
    limits = ServerLimits(image_seconds=3)
    app = fake_app(FakeEngine(script()), limits=limits)
    with image_host({"/slow": 2.5}) as host, serving(app) as address:
        told: dict[str, httpx.Response] = {}

        def ask(name: str, **what: Any) -> None:
            told[name] = httpx.post(f"{address}/generate", timeout=30, **what)

        requests: dict[str, dict[str, Any]] = {
            "slow": {"json": {"inputs": f"![]({host}/slow)a"}},
            "many": {"json": {"inputs": f"![]({data_url(png())})" * 10_000}},
            "large": {"content": b"a" * 100 * 2**20, "headers": {"content-type": "application/json"}},
            "markdown": {"json": {"inputs": "![](" * 1_000_000}},
            "deep": {"content": b"[" * 2**20, "headers": {"content-type": "application/json"}},
        }
        threads = [threading.Thread(target=ask, args=(name,), kwargs=what) for name, what in requests.items()]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            assert httpx.post(f"{address}/generate", json={"inputs": "a"}).status_code == 200
            assert time.monotonic() - began < 2
            time.sleep(0.02)
        assert {name: response.status_code for name, response in told.items()} == {
            "slow": 200, "many": 422, "large": 413, "markdown": 422, "deep": 422,
        }  # fmt: skip
        assert app.state.service.open == 0


def test_who_leaves_while_an_image_is_fetched_is_forgotten() -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(image_seconds=5))
    with image_host({"/slow": 3.0}) as host, serving(app) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/generate", json={"inputs": f"![]({host}/slow)a"}, timeout=0.5)
        wait_until(lambda: app.state.service.open == 0, seconds=1)


def test_keys() -> None:
    with serving(fake_app(FakeEngine(script()), api_keys=["one", "two"])) as address, httpx.Client() as client:
        for path in ("/health", "/metrics"):
            assert client.get(address + path).status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "one"}, {"authorization": "Bearer"}):
            assert client.get(f"{address}/info", headers=headers).status_code == 401
            refused = client.post(f"{address}/v1/chat/completions", json=CHAT, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for key in ("one", "two"):
            assert client.get(f"{address}/info", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_other_pages_may_ask_only_if_allowed() -> None:
    preflight = {"origin": "https://a.b", "access-control-request-method": "POST"}
    with serving(fake_app(FakeEngine(script()))) as address:
        assert "access-control-allow-origin" not in httpx.options(f"{address}/generate", headers=preflight).headers
        assert "access-control-allow-origin" not in httpx.get(f"{address}/info", headers=preflight).headers
    with serving(fake_app(FakeEngine(script()), cors=["https://a.b"], api_keys=["k"])) as address:
        allowed = httpx.options(f"{address}/generate", headers=preflight).headers
        assert allowed["access-control-allow-origin"] == "https://a.b"


def test_metrics() -> None:
    with serving(fake_app(FakeEngine(script()))) as address, httpx.Client() as client:
        client.post(f"{address}/generate", json={"inputs": f"![]({data_url(png())})a"})
        client.post(f"{address}/generate", json={"inputs": ""})
        client.post(f"{address}/generate", json={"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "("}}})
        page = client.get(f"{address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values["tgi_request_count"]) == 2
    assert float(values["tgi_request_success"]) == 1
    assert float(values['tgi_request_failure{err="validation"}']) == 1
    assert float(values['idefics_finished_answers_total{reason="eos"}']) == 1
    assert float(values["idefics_generated_tokens_total"]) == 4
    assert float(values["idefics_time_to_first_token_seconds_count"]) == 1
    assert float(values["idefics_time_between_tokens_seconds_count"]) == 3
    assert float(values["idefics_image_bytes_total"]) == len(png())
    assert {"tgi_queue_size", "tgi_batch_current_size", "idefics_kv_cache_blocks", "idefics_image_cache_hits_total"} <= {
        *values
    }


def test_logs_are_json_with_the_requests_id() -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("idefics.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with serving(fake_app(FakeEngine(script()))) as address:
            httpx.post(f"{address}/generate", json={"inputs": "a"}, headers={"x-request-id": "r-1"})
            httpx.post(f"{address}/generate_stream", json={"inputs": "a"}, headers={"x-request-id": "r-2"})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    for request_id in ("r-1", "r-2"):
        mine = {line["message"]: line for line in found if line.get("request_id") == request_id}
        assert mine["answered"]["generated_tokens"] == 4
        assert mine["request"]["status"] == 200
    assert {"ready", "stopping", "stopped"} <= {line["message"] for line in found}


def test_only_one_thread_touches_the_engine() -> None:
    engine = FakeEngine(script(), step_seconds=0.005)
    with serving(fake_app(engine)) as address:
        threads = [threading.Thread(target=lambda: httpx.post(f"{address}/generate", json=BODY, timeout=30)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        leave(address, "/generate_stream", BODY, engine, after=b'"index":1')
        wait_until(lambda: not engine.busy)
    assert engine.threads == {"engine"}
