"""Bodies of any size and any values cost little, and nothing in them is taken for something else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_engine import FakeEngine
from idefics.server.http.bodies import parsed
from idefics.server.openai.schemas import ChatCompletionRequest
from serving import fake_app, script

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
MANY = 90_000
KEYS = dict.fromkeys(map(str, range(MANY)), 0)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(fake_app(FakeEngine(script())), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "a", "parameters": {"stop": [0] * MANY}}),
        ("/generate", {"inputs": "a", "parameters": KEYS}),
        ("/tokenize", {"inputs": "a", **KEYS}),
        ("/chat_tokenize", {"messages": [0] * MANY}),
        ("/playground/plan", {"messages": [0] * MANY}),
        ("/playground/plan", {**CHAT, **KEYS}),
        ("/v1/chat/completions", {"messages": [0] * MANY}),
        ("/v1/chat/completions", {**CHAT, **KEYS}),
        ("/v1/chat/completions", {**CHAT, "stop": [0] * MANY}),
        ("/v1/chat/completions", {**CHAT, "logit_bias": dict.fromkeys(KEYS, "x")}),
        ("/v1/chat/completions", {**CHAT, "logit_bias": ["x"] * MANY}),
        ("/v1/chat/completions", {**CHAT, "tools": [0] * MANY}),
        ("/v1/completions", {"prompt": [0] * MANY}),
        ("/v1/completions", {"prompt": "a", "metadata": [[0]] * 2_000_000}),
    ],
    ids=lambda value: value if isinstance(value, str) else max(value, key=lambda name: len(str(value[name])))[:12],
)
def test_errors_are_not_collected(client: TestClient, path: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    began = time.process_time()
    response = client.post(path, content=data, headers={"content-type": "application/json"})
    assert time.process_time() - began < 1
    assert response.status_code in (400, 422)
    assert len(response.text) < 1_000


def test_long_chats_and_large_schemas_are_no_crime() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a, b"}]}] * 8_000
    schema = {"type": "object", "properties": {str(number): {"enum": ["a", "b"]} for number in range(5_000)}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = parsed(json.dumps({"messages": messages, "response_format": form}).encode())
    assert len(ChatCompletionRequest.model_validate(body).messages) == 8_000


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": True}, {"max_new_tokens": "3"}, {"max_new_tokens": 3.0}, {"temperature": True},
        {"temperature": "0.5"}, {"do_sample": "yes"}, {"details": 1}, {"seed": True}, {"stop": "a"}, {"stop": [1]},
    ],
)  # fmt: skip
def test_nothing_is_converted(client: TestClient, parameters: dict[str, Any]) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": parameters})
    assert response.status_code == 422
    assert f"`{next(iter(parameters))}" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "n": True}),
        ("/v1/chat/completions", {**CHAT, "stream": "false"}),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": 1}}),
        ("/v1/completions", {"prompt": "a", "logprobs": False}),
    ],
)
def test_nothing_is_converted_below_v1(client: TestClient, path: str, body: dict[str, Any]) -> None:
    assert client.post(path, json=body).status_code == 400


def test_whole_numbers_are_numbers(client: TestClient) -> None:
    assert client.post("/generate", json={"inputs": "a", "parameters": {"temperature": 2}}).status_code == 200
    assert client.post("/v1/chat/completions", json={**CHAT, "temperature": 1}).status_code == 200


TAKEN = {
    "/": '{"inputs": "a", "parameters": {"do_sample": false}, "extra": %s}',
    "/generate": '{"inputs": "a", "parameters": {"do_sample": false}, "extra": %s}',
    "/generate_stream": '{"inputs": "a", "extra": %s}',
    "/tokenize": '{"inputs": "a", "extra": %s}',
    "/chat_tokenize": '{"messages": [{"role": "user", "content": "x", "foo": %s}]}',
    "/playground/plan": '{"messages": [{"role": "user", "content": "x", "foo": %s}]}',
    "/v1/completions": '{"prompt": "a", "extra": %s}',
    "/v1/chat/completions": '{"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "foo": %s}]}]}',
}


@pytest.mark.parametrize("path", TAKEN)
@pytest.mark.parametrize("depth", [101, 600, 5_000, 45_000])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_no_request(client: TestClient, path: str, depth: int, brackets: tuple[str, str]) -> None:
    begins, ends = brackets
    data = TAKEN[path].replace("%s", begins * depth + "1" + ends * depth)
    response = client.post(path, content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "more than 100 deep" in response.text


def test_nesting_below_the_limit_is_read() -> None:
    assert parsed(b"[" * 100 + b"]" * 100) == parsed(b" " + b"[" * 100 + b"]" * 100)
    flat = parsed(b"[" + b",".join([b"[]"] * 1_000) + b"]")
    assert len(flat) == 1_000


NOTHING: list[Any] = [None, False, 0, 0.0, "", [], {}]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_an_unknown_field_that_is_empty_asks_for_nothing(client: TestClient, nothing: Any) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a", "unknown": nothing}], "unknown": nothing}
    for path, body in {
        "/v1/chat/completions": {"messages": [message], "unknown": nothing, "functions": nothing},
        "/v1/completions": {"prompt": "a", "unknown": nothing},
        "/generate": {"inputs": "a", "parameters": {"unknown": nothing}},
        "/chat_tokenize": {"messages": [message], "unknown": nothing},
        "/playground/plan": {"messages": [message], "unknown": nothing},
    }.items():
        assert client.post(path, json=body).status_code == 200, path


def test_what_clients_send_for_the_sake_of_others_is_taken(client: TestClient) -> None:
    kept = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "system", "content": "s", **kept},
        {"role": "user", "content": [{"type": "text", "text": "a", **kept}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": [], "annotations": [], "audio": None, "function_call": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}, **kept}]},
    ]
    assert client.post("/chat_tokenize", json={"messages": messages}).status_code == 200
    empty = {"functions": [], "tools": [], "tool_choice": "", "chat_template_kwargs": {}, "logit_bias": {}, "modalities": []}
    assert client.post("/v1/chat/completions", json={"messages": messages[:3], **empty}).status_code == 200


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"unknown": 1}, "unknown"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "unknown": " "}]}]}, "unknown"),
    ],
)
def test_an_unknown_field_that_says_something_is_refused_by_name(
    client: TestClient, change: dict[str, Any], named: str
) -> None:
    response = client.post("/v1/chat/completions", json={**CHAT, **change})
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]
