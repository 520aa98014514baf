"""The client `openai` works unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from contract.conftest import Served
from contract.questions import demo, prompt, url


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages(question: str, *names: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url(name)}} for name in names]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_chat(client: openai.OpenAI, served: Served) -> None:
    expected = served.model.generate("What is this?", images=demo("thing"))
    asked = messages("What is this?", "thing")
    answer = client.chat.completions.create(model="any", messages=asked, temperature=0, logprobs=True, top_logprobs=3)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 44
    assert answer.choices[0].logprobs is not None
    assert [len(token.top_logprobs) for token in answer.choices[0].logprobs.content or []] == [3] * 3
    stream = client.chat.completions.create(
        model="any", messages=asked, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == expected
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == 4


def test_the_streaming_helper_puts_the_answer_together(client: openai.OpenAI, served: Served) -> None:
    expected = served.model.generate("What is this?", images=demo("thing"))
    with client.chat.completions.stream(model="any", messages=messages("What is this?", "thing"), temperature=0) as stream:
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", expected)


def test_two_images_several_answers_stop_and_seed(client: openai.OpenAI, served: Served) -> None:
    asked = messages("Which image shows a star?", "left", "right")
    expected = served.model.generate("Which image shows a star?", images=[demo("left"), demo("right")])
    create = client.chat.completions.create
    assert create(model="x", messages=asked, temperature=0).choices[0].message.content == expected
    first, second = (create(model="x", messages=asked, n=3, seed=5, temperature=1.5) for _ in range(2))
    assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices]
    assert len(first.choices) == 3
    stopped = create(model="x", messages=asked, temperature=0, stop=[expected[2:4]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (expected[: expected.index(expected[2:4])], "stop")
    assert create(model="x", messages=asked, temperature=0, max_tokens=1).choices[0].finish_reason == "length"


def test_beyond_the_api(client: openai.OpenAI) -> None:
    asked = messages("What is this?", "thing")
    extra = {"do_image_splitting": True, "max_image_size": 84}
    answer = client.chat.completions.create(model="x", messages=asked, temperature=0, max_tokens=5, extra_body=extra)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 44 + 4 * 32 + 4


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        model="x", messages=messages("How many?", "things"), response_format=form, temperature=0, max_tokens=50
    )
    assert 0 <= json.loads(answer.choices[0].message.content or "")["n"] <= 9


def test_completions_and_models(client: openai.OpenAI, served: Served) -> None:
    expected = served.model.generate("What is this?", images=demo("thing"))
    answer = client.completions.create(model="x", prompt=prompt("What is this?", "thing"), temperature=0, logprobs=2)
    assert answer.choices[0].text == f" {expected}", "which follows the prompt's last colon"
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 3
    pieces = list(client.completions.create(model="x", prompt=prompt("What is this?", "thing"), temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == f" {expected}"
    assert [model.id for model in client.models.list()] == ["idefics2-nano"]
    assert client.models.retrieve("idefics2-nano").object == "model"


def test_errors(client: openai.OpenAI) -> None:
    asked = messages("x")
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError, match="calls no tools") as refused:
        client.chat.completions.create(model="x", messages=asked, tools=tools)
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="must be <= 2048"):
        client.chat.completions.create(model="x", messages=asked, max_tokens=5_000)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
