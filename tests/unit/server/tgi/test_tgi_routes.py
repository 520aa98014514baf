"""The text-generation-inference API over a fake engine: shapes, defaults, statuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_engine import FakeEngine
from idefics.errors import InputError, NumericsError
from idefics.server.limits import ServerLimits
from idefics.server.tgi.routes import grammar_of
from idefics.server.tgi.schemas import GrammarParameter
from serving import data_url, fake_app, image_host, png, script


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(script())


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(fake_app(engine), raise_server_exceptions=False) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def test_generate(client: TestClient) -> None:
    response = client.post("/generate", json={"inputs": "What?", "parameters": {}})
    assert response.status_code == 200
    assert response.json() == {"generated_text": " the red image"}
    assert response.headers["x-generated-tokens"] == "4"
    assert int(response.headers["x-prompt-tokens"]) > 3
    assert response.headers["x-compute-type"] == "cpu+optimized"
    assert response.headers["x-compute-characters"] == "5"
    times = ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token")
    assert all(response.headers[name].isdecimal() for name in times)
    assert float(response.headers["x-compute-time"]) > 0
    assert response.headers["x-request-id"]


def test_streams_and_openais_answers_have_the_headers_too(client: TestClient) -> None:
    chat = {"messages": [{"role": "user", "content": "What?"}]}
    whole = {"x-compute-type": "cpu+optimized", "x-generated-tokens": "4"}
    for path, body, due in (
        ("/generate_stream", {"inputs": "What?"}, {"x-compute-characters": "5", "x-accel-buffering": "no"}),
        ("/", {"inputs": "What?", "stream": True}, {"x-compute-characters": "5"}),
        ("/v1/chat/completions", {**chat, "stream": True}, {"x-compute-characters": "40", "x-accel-buffering": "no"}),
        ("/v1/chat/completions", chat, {**whole, "x-compute-characters": "40"}),
        ("/v1/completions", {"prompt": ["a", "bc"]}, {**whole, "x-generated-tokens": "8", "x-compute-characters": "3"}),
    ):
        headers = client.post(path, json=body).headers
        assert headers["x-compute-type"] == "cpu+optimized"
        assert {name: headers[name] for name in due} == due, path


def test_the_compatible_route_answers_a_list_or_streams(client: TestClient) -> None:
    assert client.post("/", json={"inputs": "What?"}).json() == [{"generated_text": " the red image"}]
    response = client.post("/", json={"inputs": "What?", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events(response.text)[-1]["generated_text"] == " the red image"


def test_absent_parameters_sample_and_present_ones_do_not(client: TestClient, engine: FakeEngine) -> None:
    client.post("/generate", json={"inputs": "a"})
    client.post("/generate", json={"inputs": "a", "parameters": None})
    client.post("/generate", json={"inputs": "a", "parameters": {}})
    assert [params.do_sample for params in engine.params] == [True, True, False]
    assert [params.max_new_tokens for params in engine.params] == [100, 100, 100]


def test_a_sampling_parameter_samples_whatever_do_sample_says(client: TestClient, engine: FakeEngine) -> None:
    details = client.post(
        "/generate", json={"inputs": "a", "parameters": {"do_sample": False, "temperature": 0.5, "details": True}}
    ).json()["details"]
    assert engine.params[0].do_sample
    assert details["seed"] == engine.params[0].seed
    assert details["seed"] is not None


def test_a_temperature_of_one_alone_changes_nothing_and_samples_nothing(client: TestClient, engine: FakeEngine) -> None:
    parameters = {"temperature": 1.0, "details": True}
    details = client.post("/generate", json={"inputs": "a", "parameters": parameters}).json()["details"]
    assert details["seed"] is None
    assert not engine.params[0].do_sample
    details = client.post("/generate", json={"inputs": "a", "parameters": {**parameters, "best_of": 3}}).json()["details"]
    assert [answer["generated_text"] for answer in details["best_of_sequences"]] == [" the red image"] * 2
    assert engine.params[1].candidates == 1
    client.post("/generate", json={"inputs": "a", "parameters": {**parameters, "do_sample": True}})
    assert engine.params[2].do_sample


def test_every_parameter_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    given = {
        "temperature": 0.7, "top_k": 5, "top_p": 0.9, "typical_p": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.5,
        "seed": 7, "max_new_tokens": 9, "top_n_tokens": 2,
    }  # fmt: skip
    assert client.post("/generate", json={"inputs": "a", "parameters": given}).status_code == 200
    params = engine.params[0]
    for name, value in given.items():
        assert getattr(params, {"top_n_tokens": "logprobs"}.get(name, name)) == value


def test_details(client: TestClient) -> None:
    parameters = {"details": True, "decoder_input_details": True, "top_n_tokens": 2}
    details = client.post("/generate", json={"inputs": "a", "parameters": parameters}).json()["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == 4
    assert details["seed"] is None
    assert details["prefill"][0]["logprob"] is None
    assert details["prefill"][1]["logprob"] == -1.0
    assert [set(token) for token in details["tokens"]] == [{"id", "text", "logprob", "special"}] * 4
    assert [token["special"] for token in details["tokens"]] == [False, False, False, True]
    assert "".join(token["text"] for token in details["tokens"] if not token["special"]) == " the red image"
    assert [len(top) for top in details["top_tokens"]] == [2] * 4


def test_stream(client: TestClient) -> None:
    response = client.post("/generate_stream", json={"inputs": "a", "parameters": {"top_n_tokens": 1, "details": True}})
    found = events(response.text)
    assert "[DONE]" not in response.text
    assert [event["index"] for event in found] == [1, 2, 3, 4]
    assert [event["generated_text"] for event in found] == [None, None, None, " the red image"]
    assert all(event["details"] is None for event in found[:-1])
    assert found[-1]["details"] == {"finish_reason": "eos_token", "generated_tokens": 4, "seed": None, "input_length": 2}
    assert all(len(event["top_tokens"]) == 1 for event in found)


def test_a_stream_tells_details_only_if_asked(client: TestClient) -> None:
    for path, body in (
        ("/generate_stream", {}),
        ("/", {"stream": True}),
        ("/generate_stream", {"parameters": {"details": False}}),
    ):
        found = events(client.post(path, json={"inputs": "a", **body}).text)
        assert [event["details"] for event in found] == [None] * 4
        assert found[-1]["generated_text"] == " the red image"


def test_return_full_text_repeats_the_prompt(client: TestClient) -> None:
    url = data_url(png())
    body = {"inputs": f"![]({url})What?", "parameters": {"return_full_text": True}}
    assert client.post("/generate", json=body).json()["generated_text"] == f"![]({url})What? the red image"


def test_a_stop_string_is_part_of_the_text(client: TestClient) -> None:
    parameters = {"stop": ["red"], "details": True}
    answer = client.post("/generate", json={"inputs": "a", "parameters": parameters}).json()
    assert answer["generated_text"] == " the red"
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_a_special_token_stops_too(client: TestClient, engine: FakeEngine) -> None:
    parameters = {"stop": ["<end_of_utterance>"], "details": True}
    client.post("/generate", json={"inputs": "a", "parameters": parameters})
    assert len(engine.params[0].eos_token_id) == 2  # </s> and the one that was named, which the checkpoint ends with anyway


def test_best_of(client: TestClient, engine: FakeEngine) -> None:
    parameters = {"best_of": 3, "do_sample": True, "details": True}
    details = client.post("/generate", json={"inputs": "a", "parameters": parameters}).json()["details"]
    assert engine.params[0].candidates == 3
    assert len(details["best_of_sequences"]) == 2
    assert details["best_of_sequences"][0]["generated_text"] == " the red image"
    assert details["best_of_sequences"][0]["finish_reason"] == "eos_token"


def test_truncate_keeps_the_end(client: TestClient, engine: FakeEngine) -> None:
    client.post("/generate", json={"inputs": "red blue", "parameters": {}})
    client.post("/generate", json={"inputs": "red blue", "parameters": {"truncate": 1}})
    whole, cut = (inputs.input_ids_BT[0].tolist() for inputs in engine.seen)
    assert cut == whole[-1:]
    refused = client.post("/generate", json={"inputs": f"![]({data_url(png())})a", "parameters": {"truncate": 2}})
    assert refused.status_code == 422
    assert "cut an image" in refused.json()["error"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"best_of": 99, "do_sample": True}, "`best_of` must be > 0 and <= 8. Given: 99"),
        ({"watermark": True}, "`watermark` is not supported"),
        ({"adapter_id": "x"}, "`adapter_id` is not supported"),
        ({"truncate": 0}, "`truncate` must be strictly positive"),
        ({"top_n_tokens": 99}, "`top_n_tokens` must be >= 0 and <= 20. Given: 99"),
        ({"stop": ["x"] * 17}, "`stop` supports up to 16 stop sequences. Given: 17"),
        ({"stop": [""]}, "a stop sequence must have"),
        ({"max_new_tokens": 512}, "`inputs` tokens + `max_new_tokens` must be <= 512. Given:"),
        ({"max_image_size": 73}, "max_image_size = 73 must be from 1 to 72"),
        ({"temprature": 1}, "`temprature` is not a parameter"),
        ({"seed": -1}, "`seed`"),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar is not valid"),
        ({"grammar": {"type": "json", "value": "no"}}, "grammar is not valid"),
        ({"grammar": {"type": "json", "value": "[" * 70_000}}, "grammar is not valid: 70000 characters are over the limit"),
        ({"grammar": {"type": "json_schema", "value": {"type": "object"}}}, "`grammar` of type json_schema takes"),
        ({"grammar": {"type": "json_schema", "value": "{}"}}, "`grammar` of type json_schema takes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(client: TestClient, parameters: dict[str, Any], message: str) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": parameters})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert f"Input validation error: {message}" in response.json()["error"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
    ],
)
def test_what_cannot_be_streamed_is_refused(client: TestClient, parameters: dict[str, Any], message: str) -> None:
    response = client.post("/generate_stream", json={"inputs": "a", "parameters": parameters})
    assert response.status_code == 422
    assert response.json() == {"error": f"Input validation error: {message}", "error_type": "validation"}


@pytest.mark.parametrize("inputs", ["", "a <image> b", "a <fake_token_around_image>"])
def test_unusable_inputs(client: TestClient, inputs: str) -> None:
    response = client.post("/generate", json={"inputs": inputs})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"


def test_more_text_than_can_fit_is_refused_unread(client: TestClient) -> None:
    response = client.post("/generate", json={"inputs": "a" * 1_000_000})
    assert response.status_code == 422
    assert "characters are more in any case" in response.json()["error"]


def test_errors_of_the_engine(client: TestClient, engine: FakeEngine) -> None:
    engine.refuse = InputError("does not fit the cache")
    response = client.post("/generate", json={"inputs": "a"})
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    engine.refuse = None
    engine.fail_request = NumericsError("logits are NaN")
    response = client.post("/generate", json={"inputs": "a"})
    assert response.status_code == 424
    assert response.json() == {"error": "Request failed during generation: logits are NaN", "error_type": "generation"}
    streamed = client.post("/generate_stream", json={"inputs": "a"})
    assert events(streamed.text) == [response.json()]


def test_images_of_all_kinds_adjacent_to_text_and_to_each_other(client: TestClient, engine: FakeEngine) -> None:
    with image_host({"/a.png": (200, {}, png())}) as host:
        url = f"{host}/a.png"
        inputs = f"User:![]({url})What![]({data_url(png())})![]({url})is this?"
        assert client.post("/generate", json={"inputs": inputs}).status_code == 200
    assert engine.seen[0].images_per_row == (3,)


def test_image_tokens_do_not_depend_on_the_size(client: TestClient) -> None:
    def count(inputs: str, **parameters: Any) -> int:
        with_images = client.post("/tokenize", json={"inputs": inputs, "parameters": parameters}).json()
        return len(with_images) - len(client.post("/tokenize", json={"inputs": ""}).json())

    small, large = f"![]({data_url(png(10, 10))})", f"![]({data_url(png(700, 300))})"
    assert count(small) == count(large) == 4 + 2
    assert count(small + large) == 2 * 4 + 3
    assert count(small, do_image_splitting=True) == 5 * 4 + 6
    assert count(small + large, do_image_splitting=True) == 10 * 4 + 11


def test_tokenize_tells_where_tokens_stand(client: TestClient) -> None:
    tokens = client.post("/tokenize", json={"inputs": "the red"}).json()
    assert [set(token) for token in tokens] == [{"id", "text", "start", "stop"}] * len(tokens)
    assert "".join(token["text"] for token in tokens) == "the red"


def test_chat_tokenize(client: TestClient) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}, {"type": "text", "text": "What?"}]
    answer = client.post("/chat_tokenize", json={"model": "x", "messages": [{"role": "user", "content": parts}]}).json()
    assert answer["templated_text"] == "User:![](https://a.b/c.png)What?<end_of_utterance>\nAssistant:"
    assert {"id", "text", "start", "stop"} == set(answer["tokenize_response"][0])


def test_splitting_and_size_per_request(client: TestClient, engine: FakeEngine) -> None:
    inputs = f"![]({data_url(png(200, 100))})a"
    for parameters in ({}, {"do_image_splitting": True}, {"max_image_size": 30}):
        assert client.post("/generate", json={"inputs": inputs, "parameters": parameters}).status_code == 200
    assert [inputs.images_per_row for inputs in engine.seen] == [(1,), (5,), (1,)]
    assert max(engine.seen[2].images_CHW[0].shape[1:]) == 30


def test_the_compatible_path_by_other_names(client: TestClient) -> None:
    assert client.get("/").status_code == 200
    assert client.post("/invocations", json={"inputs": "a"}).json() == [{"generated_text": " the red image"}]


def test_a_named_schema_is_the_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    plain = GrammarParameter(type="json", value=schema)
    named = GrammarParameter(type="json_schema", value={"name": "x", "schema": schema})
    assert grammar_of(named, characters=1_000) == grammar_of(plain, characters=1_000)


def test_info_and_health(client: TestClient) -> None:
    told = client.get("/info").json()
    assert told["model_id"] == "tiny"
    assert told["model_dtype"] == "torch.float32"
    assert told["max_total_tokens"] == 512
    assert told["model_pipeline_tag"] == "image-text-to-text"
    assert told["speculate"] == 0
    known = {"model_id", "model_sha", "model_dtype", "model_device_type", "model_pipeline_tag", "max_concurrent_requests"}
    known |= {"max_best_of", "max_stop_sequences", "max_input_length", "max_input_tokens", "max_total_tokens", "max_batch_size"}
    known |= {"waiting_served_ratio", "max_batch_total_tokens", "max_waiting_tokens", "validation_workers", "speculate"}
    assert known | {"max_client_batch_size", "router", "version", "sha", "docker_label"} <= set(told)
    whole = ("max_input_length", "max_batch_total_tokens", "max_waiting_tokens", "max_client_batch_size")
    assert all(type(told[name]) is int and told[name] > 0 for name in whole)
    assert client.get("/health").status_code == 200


def test_unknown_paths_methods_and_bodies_have_the_same_shape(client: TestClient) -> None:
    for response, status in (
        (client.get("/nowhere"), 404),
        (client.get("/generate"), 405),
        (client.post("/generate", content=b"{"), 422),
        (client.post("/generate", json=[1]), 422),
        (client.post("/generate", json={"inputs": 5}), 422),
    ):
        assert response.status_code == status
        assert set(response.json()) == {"error", "error_type"}


def test_a_request_id_is_kept_or_made(client: TestClient) -> None:
    assert client.get("/info", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(client.get("/info", headers={"x-request-id": "no good\t"}).headers["x-request-id"]) == 32


def test_limits_of_images() -> None:
    limits = ServerLimits(images=2, image_pixels=2_000, request_pixels=3_000)
    with TestClient(fake_app(FakeEngine(script()), limits=limits)) as client:

        def error(*images: bytes) -> str:
            inputs = "".join(f"![]({data_url(image)})" for image in images)
            response = client.post("/generate", json={"inputs": inputs})
            assert response.status_code == 422
            return str(response.json()["error"])

        assert "3 images in one request are over the limit of 2" in error(png(), png(), png())
        assert "image 1 of 1 holds 60x60 pixels, over the limit of 2000" in error(png(60, 60))
        assert "over 3000 pixels together" in error(png(40, 40), png(40, 41))
        assert "image 1 of 1" in error(b"no image")
