"""Whatever a body holds, the server answers, never with a 500, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from fake_engine import FakeEngine
from idefics.server.limits import ServerLimits
from serving import data_url, fake_app, png, script, serving

CALM = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
EAGER = settings(CALM, max_examples=150)
LIMITS = ServerLimits(image_seconds=0.2, deadline=20)

NAMES = [
    "inputs", "parameters", "stream", "best_of", "temperature", "top_k", "top_p", "do_sample", "max_new_tokens", "stop", "seed",
    "truncate", "grammar", "details", "decoder_input_details", "top_n_tokens", "return_full_text", "max_image_size", "messages",
    "prompt", "n", "logprobs", "top_logprobs", "response_format", "stream_options", "max_tokens", "tools", "logit_bias", "echo",
    "role", "content", "type", "text", "image_url", "url", "value", "json_schema", "schema", "do_image_splitting", "model",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([
        "User:", f"![]({data_url(png())})", "![](http://127.0.0.1:1/x)", "![](file:///etc/passwd)", "<image>", "\ud800", "\0",
        "user", "json", "regex", "json_schema", "json_object", "image_url", "text", "(", "[a-z]+", "</s>", "e" * 3_000,
    ]),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from([2**63, 2**64, -(2**63), 10**30, 1e308, float("nan")])
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES) | TEXTS, inner, max_size=4)),
    max_leaves=12,
)
PARAMETERS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3)
BODIES = {
    "/generate": {"inputs": "a", "parameters": {"max_new_tokens": 3}},
    "/": {"inputs": "a", "stream": True, "parameters": {"max_new_tokens": 3}},
    "/generate_stream": {"inputs": "a"},
    "/tokenize": {"inputs": "a"},
    "/chat_tokenize": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 3},
    "/v1/completions": {"prompt": "a", "max_tokens": 3},
    "/playground/plan": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(fake_app(FakeEngine(script()), limits=LIMITS)) as address:
        yield address


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(fake_app(FakeEngine(script()), limits=LIMITS), raise_server_exceptions=False) as client:
        yield client


def operations() -> dict[str, Any]:
    document = schemathesis.openapi.from_dict(fake_app(FakeEngine(script())).openapi())
    found = (result.ok() for result in document.get_all_operations())
    return {operation.label: operation for operation in found}


OPERATIONS = operations()


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_openapi_document_is_kept(label: str, address: str) -> None:
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]

    @CALM
    @given(OPERATIONS[label].as_strategy())
    def run(case: Any) -> None:
        try:
            case.call_and_validate(base_url=address, checks=checks)
        except FailureGroup as failures:
            raise AssertionError("\n".join(str(failure) for failure in failures.exceptions)) from None

    run()


@pytest.mark.parametrize("path", BODIES)
def test_fields_of_any_value(client: TestClient, path: str) -> None:
    @EAGER
    @given(PARAMETERS, st.booleans())
    def run(changes: dict[str, Any], inside: bool) -> None:
        body = json.loads(json.dumps(BODIES[path]))
        if inside and "inputs" in body:
            body["parameters"] = {**body.get("parameters", {}), **changes}
        else:
            body |= changes
        response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert response.status_code < 500, response.text
        assert response.status_code == 200 or "error" in response.json()

    run()


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_bodies_of_any_bytes(client: TestClient, path: str) -> None:
    deep = b'{"inputs":' * 50_000
    for data in (
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        deep,
        b"[" * 100_000,
        b'{"inputs":"a"}' * 2,
        b'{"inputs":"\\ud800"}',
    ):
        for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
            response = client.post(path, content=data, headers={"content-type": kind})
            assert 400 <= response.status_code < 500, (data[:20], response.text)
            assert "error" in response.json()


def test_it_still_answers(client: TestClient) -> None:
    assert client.post("/generate", json={"inputs": "a"}).status_code == 200
    assert client.get("/health").status_code == 200
