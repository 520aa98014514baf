"""What clients and whoever started the server see when it is stopped, or stops because its engine is no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from fake_server import FakeServer, fake_server
from idefics.server.run import bound, run
from serving import fake_app, image_host, script, wait_until

BODY: dict[str, Any] = {"inputs": "a", "parameters": {"max_new_tokens": 400}}


class Asking:
    """Requests in threads, and what came of them by path."""

    def __init__(self, server: FakeServer, paths: dict[str, dict[str, Any]]) -> None:
        self.told: dict[str, httpx.Response] = {}
        self._server = server
        self._threads = [threading.Thread(target=self._ask, args=item, daemon=True) for item in paths.items()]
        for thread in self._threads:
            thread.start()

    def _ask(self, path: str, body: dict[str, Any]) -> None:
        self.told[path] = httpx.post(self._server.address + path, json=body, timeout=60)

    def all(self) -> dict[str, httpx.Response]:
        for thread in self._threads:
            thread.join(timeout=60)
        return self.told


def gauge(client: httpx.Client, server: FakeServer, name: str) -> float:
    page = client.get(f"{server.address}/metrics").text
    return float(page.split(f"\n{name} ")[1].split()[0])


@pytest.mark.parametrize(
    "engine",
    [{"step_seconds": 0.3}, {"held": True}, {"held": True, "thread": True}],
    ids=["busy", "held", "held in a thread"],
)
def test_what_runs_after_the_drain_is_told_so(engine: dict[str, Any]) -> None:
    paths = {"/generate": BODY, "/generate_stream": BODY} if "held" not in engine else {"/generate": BODY}
    stopping = {"error": "the server is stopping", "error_type": "unavailable"}
    with fake_server(limits={"drain": 3.0}, words=100, **engine) as server, httpx.Client(verify=False, timeout=30) as client:
        asking = Asking(server, paths)
        wait_until(lambda: gauge(client, server, "tgi_batch_current_size") == len(paths), seconds=30)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        # It listens while it drains, and says that it is no longer to be used.
        wait_until(lambda: client.get(f"{server.address}/health").status_code == 503, seconds=3)
        assert client.post(f"{server.address}/generate", json=BODY).json() == stopping
        told = asking.all()
        assert time.monotonic() - began > 2, "they had their time"
        assert server.process.wait(120) == 0
        assert told["/generate"].status_code == 503
        assert told["/generate"].json() == stopping
        if "/generate_stream" in told:
            assert json.loads(told["/generate_stream"].text.split("data: ")[-1]) == stopping
    lines = server.log()
    assert all("exception" not in line for line in lines)
    # By its own clock: how long an interpreter takes to leave depends on what else the machine does.
    times = {line["message"]: datetime.fromisoformat(line["time"]) for line in lines}
    assert times["stopped"] - times["stopping"] < timedelta(seconds=3 + 5)


def test_what_is_still_being_prepared_is_told_so() -> None:
    drain = {"drain": 0.0}
    with image_host({"/slow": 15.0}) as host, fake_server(limits=drain) as server, httpx.Client(timeout=30) as client:
        asking = Asking(server, {"/v1/completions": {"prompt": f"![]({host}/slow)a"}})
        wait_until(lambda: gauge(client, server, "idefics_open_requests") == 1, seconds=30)
        server.process.send_signal(signal.SIGTERM)
        refused = asking.all()["/v1/completions"]
        assert refused.status_code == 503
        assert refused.json()["error_type"] == "unavailable"
        assert server.process.wait(120) == 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"fails": True}, "failed 3 times in a row"),
        ({"held": True, "limits": {"stuck_after": 0.2, "deadline": 1.0}}, "taken more than 1.2 s"),
        ({"held": True, "thread": True, "limits": {"stuck_after": 0.2, "deadline": 1.0}}, "taken more than 1.2 s"),
    ],
    ids=["failing", "stuck", "stuck in a thread"],
)
def test_a_server_whose_engine_is_given_up_ends_in_error(options: dict[str, Any], fault: str) -> None:
    with fake_server(**options) as server:
        for _ in range(3):
            try:
                httpx.post(f"{server.address}/generate", json=BODY, timeout=30)
            except httpx.TransportError:
                break  # it has gone
        assert server.process.wait(120) == 1
        told = [line for line in server.log() if line["level"] == "critical"]
        assert fault in told[-1]["message"]


def test_a_signal_before_uvicorn_listens_to_it_counts() -> None:
    app, at = fake_app(FakeEngine(script())), bound("127.0.0.1", 0)
    began = time.monotonic()
    assert run(app, at, listening=lambda _: signal.raise_signal(signal.SIGTERM)) == 0
    assert time.monotonic() - began < 20


def test_sigterm_while_the_model_is_loaded_ends_even_a_containers_first_process(tmp_path: Any) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here: a container's first process cannot be tried")
    # Read by the engine's process, too, which begins with this one's path and does not run the program again.
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "import idefics.cli.serve as command\n"
        "def open_model(*_):\n"
        "    print('loading', flush=True)\n"
        "    while True: time.sleep(0.1)\n"
        "command.open_model = open_model\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    served = [*alone, sys.executable, "-m", "idefics", "serve", "--port", "0"]
    process = subprocess.Popen(served, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        # From outside the namespace, as a container's runtime does.
        (first,) = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        subprocess.run(["kill", "-TERM", first], check=True)
        assert process.wait(120) == 143
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
