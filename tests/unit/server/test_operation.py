"""What happens when clients leave, come in crowds or read slowly, and when the engine is stuck, fails or is stopped."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
import weakref
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from fakes import tiny_processor
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.server.errors import Closing
from idefics.server.limits import ServerLimits
from idefics.server.link.engine_thread import EngineThread
from idefics.server.link.worker import Add, Cancel, Command, Score, Worker
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


def test_an_engine_that_fails_every_request_is_given_up() -> None:
    engine = FakeEngine(script())
    with serving(fake_app(engine)) as address, httpx.Client() as client:
        engine.fail_request = IndexError("a bug")
        for _ in range(2):
            assert client.post(f"{address}/generate", json=BODY).status_code == 424
            assert client.get(f"{address}/health").status_code == 200
        assert client.post(f"{address}/generate", json=BODY).status_code in (424, 503)
        wait_until(lambda: client.get(f"{address}/health").status_code == 503)


def test_after_a_failed_step_an_idle_server_is_healthy() -> None:
    engine = FakeEngine(script())
    app = fake_app(engine, limits=ServerLimits(stuck_after=0.2))
    with serving(app) as address, httpx.Client() as client:
        engine.fail_step = RuntimeError("a bug")
        assert client.post(f"{address}/generate", json=BODY).status_code == 424
        engine.fail_step = None
        time.sleep(0.5)
        assert client.get(f"{address}/health").status_code == 200
        assert "tgi_batch_current_size 0.0" in client.get(f"{address}/metrics").text


def test_a_command_that_cannot_be_sent_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    app = fake_app(FakeEngine(script()), limits=ServerLimits(stuck_after=0.2))
    send = EngineThread.send

    def breaking(self: EngineThread, command: Command) -> None:
        if isinstance(command, Add) and command.request_id == "bad":
            raise MemoryError
        send(self, command)

    monkeypatch.setattr(EngineThread, "send", breaking)
    with serving(app) as address, httpx.Client() as client:
        assert client.post(f"{address}/generate", json=BODY, headers={"x-request-id": "bad"}).status_code == 424
        time.sleep(0.5)
        assert client.get(f"{address}/health").status_code == 200
        assert client.post(f"{address}/generate", json=BODY).status_code == 200
        assert app.state.service.open == 0


def test_what_nobody_waits_for_is_not_computed() -> None:
    engine, scored, told = FakeEngine(script()), [], []
    inputs = tiny_processor().inputs(["a b"], [[]])
    engine.score_prompt = scored.append  # type: ignore[method-assign, assignment]
    worker = Worker(engine, tiny_processor().tokenizer, told.append)
    add = Add(
        number=2, request_id=None, inputs=inputs, params=SamplingParams(), stop=(), inside=False, grammar=None, deadline=9e9
    )
    for command in (Score(number=1, request_id=None, inputs=inputs), add, Cancel(1), Cancel(2)):
        worker.post(command)
    assert worker._turn()
    assert (scored, engine.seen) == ([], [])
    (report,) = told
    assert (report.commands, report.outcomes, report.busy) == (4, [], False)


def test_pixels_go_with_their_answer() -> None:
    engine = FakeEngine(script())
    app = fake_app(engine)
    with serving(app) as address, httpx.Client() as client:
        body = {"inputs": f"![]({data_url(png())})a", "parameters": {"max_new_tokens": 3}}
        assert client.post(f"{address}/generate", json=body).status_code == 200
        gone = weakref.ref(engine.seen.pop().images_CHW[0])
        wait_until(lambda: app.state.service.open == 0)
        gc.collect()
        assert gone() is None, "not only when the next request comes"


def test_who_comes_during_the_last_failing_step_is_told_at_once() -> None:
    engine = FakeEngine(script())
    app = fake_app(engine)
    with serving(app) as address:
        engine.fail_step = RuntimeError("a bug")
        for _ in range(2):
            httpx.post(f"{address}/generate", json=BODY)
        engine.hold.clear()
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(httpx.post(f"{address}/generate", json=BODY, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        wait_until(lambda: engine.busy)
        threads[1].start()
        wait_until(lambda: app.state.service.open == 2)
        time.sleep(0.2)  # now it is in the inbox
        began = time.monotonic()
        engine.hold.set()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 10, "not when its time is over, in ten minutes"
        assert sorted(statuses) == [424, 503]
        assert app.state.service.open == 0


class Breakable(FakeEngine):
    """Fails where nobody expects it once it is told to."""

    broken = False

    @property
    def busy(self) -> bool:
        if self.broken and threading.current_thread().name == "engine":
            raise RuntimeError("a bug")
        return super().busy


def test_whatever_ends_the_engines_thread_nobody_waits_for_it() -> None:
    engine = Breakable(LONG, step_seconds=0.02)
    app = fake_app(engine)
    with serving(app) as address, httpx.stream("POST", f"{address}/generate_stream", json=BODY, timeout=60) as streamed:
        events = streamed.iter_lines()
        next(events)
        engine.broken = True
        *_, last = (line for line in events if line)
        assert json.loads(last[5:])["error_type"] == "unavailable"
        wait_until(lambda: app.state.service.open == 0)
        assert httpx.get(f"{address}/health").status_code == 503
        assert httpx.post(f"{address}/generate", json=BODY, timeout=60).status_code == 503
        assert app.state.service.bridge.fault == "the engine's loop ended: RuntimeError"


def test_work_beside_a_dead_engine_is_refused() -> None:
    engine, gate, began = Breakable(script()), threading.Event(), threading.Event()
    app, inputs = fake_app(engine), tiny_processor().inputs(["a b"], [[]])

    def score_prompt(_: ModelInputs) -> list[float]:
        began.set()
        gate.wait()
        return [-1.0]

    engine.score_prompt = score_prompt  # type: ignore[method-assign]

    async def refused() -> None:
        bridge = app.state.service.bridge
        async with app.router.lifespan_context(app):
            first = asyncio.create_task(bridge.score(inputs))
            while not began.is_set():
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(bridge.score(inputs))
            await asyncio.sleep(0)
            engine.broken = True
            gate.set()
            async with asyncio.timeout(20):
                for asked in (first, waiting, bridge.score(inputs)):
                    with pytest.raises(Closing):
                        await asked

    asyncio.run(refused())


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
    limits = ServerLimits(image_seconds=20)
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
            assert time.monotonic() - began < 4
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


def test_other_pages_may_ask_only_if_allowed() -> None:
    preflight = {"origin": "https://a.b", "access-control-request-method": "POST"}
    with serving(fake_app(FakeEngine(script()))) as address:
        assert "access-control-allow-origin" not in httpx.options(f"{address}/generate", headers=preflight).headers
        assert "access-control-allow-origin" not in httpx.get(f"{address}/info", headers=preflight).headers
    with serving(fake_app(FakeEngine(script()), cors=["https://a.b"], api_keys=["k"])) as address:
        allowed = httpx.options(f"{address}/generate", headers=preflight).headers
        assert allowed["access-control-allow-origin"] == "https://a.b"


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
