"""`idefics serve` as people run it: with no arguments, stopped in order, killed and started again, over TLS."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from contract.questions import prompt
from serving import certificate, wait_until


@contextmanager
def running(*options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The command's process, its address, and the lines it logs."""
    command = [sys.executable, "-m", "idefics", "serve", *options, *(["--port", str(port)] if port or options else [])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    first = process.stderr.readline()
    reading.start()
    try:
        assert "address" in first, first + "".join(lines)
        address = json.loads(first)["address"]
        wait_until(lambda: any('"ready"' in line for line in lines) or process.poll() is not None, seconds=60)
        yield process, address, lines
    finally:
        process.kill()
        process.wait()
        reading.join(timeout=10)
        process.stderr.close()


def test_it_serves_the_embedded_model_and_stops_in_order() -> None:
    with running("--drain", "20") as (process, address, lines):
        assert httpx.get(f"{address}/info").json()["model_id"] == "idefics2-nano"
        parameters = {"max_new_tokens": 300, "details": True, "grammar": {"type": "regex", "value": "(.|\n){2000}"}}
        body = {"inputs": prompt("What is this?", "thing"), "parameters": parameters}
        with httpx.stream("POST", f"{address}/generate_stream", json=body, timeout=60) as response:
            events = (json.loads(line[5:]) for line in response.iter_lines() if line)
            next(events)
            process.send_signal(signal.SIGTERM)
            *_, last = events
        assert last["details"]["generated_tokens"] == 300
        assert process.wait(30) == 0
    assert all(json.loads(line)["level"] in ("info", "warning") for line in lines), "logs are JSON"
    assert '"stopped"' in "".join(lines)


def test_killed_and_started_again_at_the_same_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = {"inputs": prompt("What is this?", "thing"), "parameters": {"max_new_tokens": 10}}
    answers = []
    for _ in range(2):
        with running("--log-level", "info", port=port) as (process, address, _):
            answers.append(httpx.post(f"{address}/generate", json=body, timeout=60).json())
            process.kill()
    assert answers[0] == answers[1] == {"generated_text": " a brown circle"}


def test_tls_and_a_key(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with running("--tls-cert", str(cert), "--tls-key", str(key), "--api-key", "secret") as (_, address, lines):
        assert address.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{address}/info", verify=trusted).status_code == 401
        allowed = httpx.get(f"{address}/info", verify=trusted, headers={"authorization": "Bearer secret"})
        assert allowed.json()["model_id"] == "idefics2-nano"
        assert "secret" not in "".join(lines)
