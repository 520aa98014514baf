"""`--speculate`: the same answers in fewer passes, through both APIs."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from fakes import tiny_idefics
from idefics.api import Idefics
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.request import Event
from idefics.server.app import create_app
from idefics.server.link.engine_thread import EngineThread
from idefics.server.model import ServedModel

REPETITIVE = "the red image is blue and " * 6
GREEDY = {"max_new_tokens": 60, "details": True}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": REPETITIVE, "parameters": GREEDY}),
    ("/generate", {"inputs": REPETITIVE, "parameters": {**GREEDY, "top_n_tokens": 2, "stop": ["zz"]}}),
    ("/generate", {"inputs": REPETITIVE, "parameters": {**GREEDY, "max_new_tokens": 120, "temperature": 0.2, "seed": 4}}),
    ("/generate", {"inputs": REPETITIVE, "parameters": {**GREEDY, "grammar": {"type": "regex", "value": "(red ){20}"}}}),
    ("/v1/completions", {"prompt": REPETITIVE, "temperature": 0, "max_tokens": 60, "logprobs": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "it is " * 4}], "temperature": 0, "max_tokens": 100}),
]


class Counting(Engine):
    steps = 0

    def step(self) -> list[Event]:
        self.steps += 1
        return super().step()


@pytest.fixture(scope="module")
def tiny() -> Idefics:
    return tiny_idefics(std=0.3)


def answered(tiny: Idefics, path: str, body: dict[str, Any], *, speculate: int | None) -> tuple[Any, int, int]:
    """The answer without what differs anyway, the passes, and what `/info` tells."""
    engine = Counting(tiny.model, Limits(cache_bytes=2**22))
    app = create_app(ServedModel.of(tiny, speculate=speculate), EngineThread(engine, tiny.processor.tokenizer))
    with TestClient(app) as client:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json(), engine.steps, client.get("/info").json()["speculate"]


def rounded(value: Any) -> Any:
    """Log-probabilities of tokens computed together differ in their last digits, and ids and times at all."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items() if name not in ("id", "created") or "text" in value}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_the_same_answer_in_fewer_passes(tiny: Idefics, path: str, body: dict[str, Any]) -> None:
    plain, passes, told = answered(tiny, path, body, speculate=None)
    guessed, fewer, speculates = answered(tiny, path, body, speculate=4)
    assert rounded(guessed) == rounded(plain)
    assert (told, speculates) == (0, 4)
    assert fewer < passes


def test_zero_is_off(tiny: Idefics) -> None:
    path, body = REQUESTS[0]
    assert answered(tiny, path, body, speculate=0)[1:] == answered(tiny, path, body, speculate=None)[1:]


def test_a_checkpoint_may_ask_for_it_and_be_overruled(tiny: Idefics) -> None:
    asking = Idefics(tiny.name, tiny.model, tiny.processor, {**tiny.defaults, "prompt_lookup_num_tokens": 4})
    path, body = REQUESTS[0]
    passes = [answered(asking, path, body, speculate=speculate)[1] for speculate in (None, 0)]
    assert passes[0] < passes[1]
