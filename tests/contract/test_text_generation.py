"""The client `text-generation` works unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.conftest import Served
from contract.questions import demo, prompt

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / ".venv" / "clients" / "text-generation"


def test_text_generation(served: Served) -> None:
    if not (CLIENT / ".done").exists():
        pytest.skip("the client is not here: scripts/clients fetches it, and scripts/test calls that")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("text_generation_client.py")), served.address],
        input=prompt("What is this?", "thing"), env={**os.environ, "PYTHONPATH": str(CLIENT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = " " + served.model.generate("What is this?", images=demo("thing"))
    assert found["whole"] == found["stream"] == found["stream_text"] == expected
    assert found["finish"] == found["stream_finish"] == "eos_token"
    assert found["generated"] == len(found["tokens"]) == len(found["top"])
    assert set(found["top"]) == {2}
    assert found["prefill"] == 44
    assert found["best"] == 1
    assert found["sampled"] == 3
    assert found["stopped"] == " a brown"
    assert found["guided"] in ("yes", "no")
    assert found["chat"] == served.model.generate("hi", max_new_tokens=10)
    assert found["chat_finish"] == "stop"
    assert found["invalid"].startswith("ValidationError: Input validation error: `inputs` tokens + `max_new_tokens` must be")
    assert found["invalid_stream"] == found["invalid"]
    assert "`watermark` is not supported" in found["watermark"]
    assert found["asynchronous"] == {"whole": expected, "stream": expected, "chat": found["chat"]}
