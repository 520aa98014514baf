"""What the server logs: one JSON object per line, with the id of the request it is about."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from fake_engine import FakeEngine
from idefics.server.logs import JsonLines
from serving import fake_app, script, serving


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """What the server logs meanwhile; once that is over."""
    found: list[dict[str, Any]] = []
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("idefics.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        found += [json.loads(line) for line in lines.getvalue().splitlines()]


def test_logs_are_json_with_the_requests_id() -> None:
    with logged() as found, serving(fake_app(FakeEngine(script()))) as address:
        httpx.post(f"{address}/generate", json={"inputs": "a"}, headers={"x-request-id": "r-1"})
        httpx.post(f"{address}/generate_stream", json={"inputs": "a"}, headers={"x-request-id": "r-2"})
    for request_id in ("r-1", "r-2"):
        mine = {line["message"]: line for line in found if line.get("request_id") == request_id}
        assert mine["answered"]["generated_tokens"] == 4
        assert mine["request"]["status"] == 200
    assert {"ready", "stopping", "stopped"} <= {line["message"] for line in found}


def test_lines_of_the_engines_thread_bear_the_requests_id() -> None:
    engine = FakeEngine(script())
    engine.refuse = RuntimeError("a bug")
    with logged() as found, serving(fake_app(engine)) as address:
        httpx.post(f"{address}/generate", json={"inputs": "a"}, headers={"x-request-id": "r-1"})
    (line,) = (line for line in found if line["message"] == "a request failed in the engine")
    assert line["request_id"] == "r-1"
    assert "a bug" in line["exception"]


def test_what_others_log_and_warn_of_is_json_too() -> None:
    said = (
        "import logging, sys, warnings",
        "noisy = logging.getLogger('noisy')",
        "noisy.addHandler(logging.StreamHandler())",
        "noisy.propagate = False",
        "from idefics.server.logs import configure",
        "configure('debug')",
        "noisy.warning('one')",
        "warnings.warn('two')",
        "logging.getLogger('uvicorn.error').info('three')",
        "logging.getLogger('idefics.any').debug('four')",
        "logging.getLogger('other').info('not told')",
    )
    process = subprocess.run([sys.executable, "-c", "\n".join(said)], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "warning", "info", "debug"]
    assert [word in line["message"] for word, line in zip(("one", "two", "three", "four"), lines, strict=True)] == [True] * 4
