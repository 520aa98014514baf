"""The first IDEFICS is served by the same code: its tokens look at images apart from the text."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

import idefics
from idefics.api import Idefics
from idefics.engine.engine import Engine
from idefics.server.app import create_app
from idefics.server.link.engine_thread import EngineThread
from idefics.server.model import ServedModel
from idefics.weights.create import create_checkpoint
from serving import data_url, png


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Idefics:
    folder: Path = tmp_path_factory.mktemp("first")
    create_checkpoint("tiny-random-idefics", folder / "model")
    return idefics.load(folder / "model", dtype="float32")


def test_it_answers_as_it_does_alone(model: Idefics) -> None:
    pictures = [png(40, 30, (200, 0, 0)), png(90, 90, (0, 0, 200))]
    prompt = "User:<image>and<image>What is this?"
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures]
    expected = model.generate(prompt, opened, raw=True, max_new_tokens=12)
    inputs = f"User:![]({data_url(pictures[0])})and![]({data_url(pictures[1])})What is this?"
    app = create_app(ServedModel.of(model), EngineThread(Engine(model.model), model.processor.tokenizer))
    with TestClient(app) as client:
        body = {"inputs": inputs, "parameters": {"max_new_tokens": 12, "decoder_input_details": True}}
        answer = client.post("/generate", json=body).json()
        assert answer["generated_text"] == expected
        assert all(token["logprob"] is None or token["logprob"] < 0 for token in answer["details"]["prefill"])
        assert len(client.post("/tokenize", json={"inputs": inputs}).json()) == len(answer["details"]["prefill"])
        usage = client.post("/v1/completions", json={"prompt": inputs, "max_tokens": 1}).json()["usage"]
        plan = client.post("/playground/plan", json={"prompt": "User:![](40x30)and![](90x90)What is this?"}).json()
        assert plan["tokens"]["prompt"] == usage["prompt_tokens"]
        refused = client.post("/generate", json={"inputs": inputs, "parameters": {"do_image_splitting": True}})
        assert refused.status_code == 422
        assert "split" in refused.json()["error"]
        truncated = client.post("/generate", json={"inputs": "a b c d", "parameters": {"max_new_tokens": 2, "truncate": 2}})
        assert truncated.status_code == 200
