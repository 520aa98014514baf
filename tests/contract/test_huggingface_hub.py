"""`huggingface_hub.InferenceClient` works unchanged."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import Iterator

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, close_session, constants
from huggingface_hub.errors import HfHubHTTPError, ValidationError

from contract.conftest import Served
from contract.questions import demo, prompt, url


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests run with the Hub switched off, and this client takes every address for the Hub's."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    close_session()
    with warnings.catch_warnings():  # it leaves a stream's connection open once it has read [DONE]
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture
def client(served: Served) -> InferenceClient:
    return InferenceClient(base_url=served.address)


@pytest.fixture
def expected(served: Served) -> str:
    return str(served.model.generate("What is this?", images=demo("thing")))


def test_text_generation(served: Served, expected: str) -> None:
    client = InferenceClient(model=served.address)
    asked = prompt("What is this?", "thing")
    appended = f" {expected}"
    assert client.text_generation(asked, max_new_tokens=10) == appended
    assert "".join(client.text_generation(asked, max_new_tokens=10, stream=True)).removesuffix("<end_of_utterance>") == appended
    whole = client.text_generation(asked, max_new_tokens=10, details=True, decoder_input_details=True, top_n_tokens=2)
    assert whole.generated_text == appended
    assert whole.details is not None
    assert whole.details.finish_reason == "eos_token"
    assert len(whole.details.prefill) == 44
    assert [len(top) for top in whole.details.top_tokens or []] == [2] * whole.details.generated_tokens
    last = list(client.text_generation(asked, max_new_tokens=10, details=True, stream=True))[-1]
    assert last.generated_text == appended
    assert last.details is not None
    assert last.details.finish_reason == "eos_token"
    drawn = client.text_generation(asked, do_sample=True, best_of=2, max_new_tokens=5, details=True)
    assert len(drawn.details.best_of_sequences or []) == 1  # type: ignore[union-attr]


def test_two_images_and_full_text(served: Served) -> None:
    client = InferenceClient(model=served.address)
    asked = prompt("Which image shows a star?", "left", "right")
    expected = " " + served.model.generate("Which image shows a star?", images=[demo("left"), demo("right")])
    assert client.text_generation(asked, max_new_tokens=20) == expected
    assert client.text_generation(asked, max_new_tokens=20, return_full_text=True) == asked + expected


def test_errors(served: Served) -> None:
    client = InferenceClient(model=served.address)
    with pytest.raises(ValidationError, match="must be strictly positive"):
        client.text_generation("a", temperature=-1.0)
    with pytest.raises(ValidationError, match="must be strictly positive"):
        list(client.text_generation("a", temperature=-1.0, stream=True))
    with pytest.raises(HfHubHTTPError, match="must be from 1 to 8, not 99"):
        client.chat_completion([{"role": "user", "content": "a"}], n=99)


def test_chat(client: InferenceClient, expected: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url("thing")}}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat_completion(messages, max_tokens=10, temperature=0, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 44
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2  # type: ignore[union-attr]
    pieces = list(client.chat_completion(messages, max_tokens=10, temperature=0, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_grammars(client: InferenceClient, served: Served) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "brown"]}}, "required": ["color"]}
    text = InferenceClient(model=served.address).text_generation(
        prompt("What color is it?", "thing"), grammar={"type": "json", "value": schema}, max_new_tokens=60
    )
    assert json.loads(text)["color"] in ("red", "brown")
    form = {"type": "json_schema", "json_schema": {"name": "color", "schema": schema}}
    answer = client.chat_completion([{"role": "user", "content": "hi"}], response_format=form, max_tokens=60)
    assert json.loads(answer.choices[0].message.content)["color"] in ("red", "brown")


def test_many_at_once(served: Served, expected: str) -> None:
    async def ask() -> list[str]:
        client = AsyncInferenceClient(model=served.address)
        return await asyncio.gather(
            *(client.text_generation(prompt("What is this?", "thing"), max_new_tokens=10) for _ in range(8))
        )

    assert asyncio.run(ask()) == [f" {expected}"] * 8
