"""The model card's snippets of the first generation run as written, with only the import changed.

As in `test_snippets.py`, a tiny checkpoint with a real tokenizer stands for the model, and a server in this process for the
images' hosts. For the comparison the model is the reference's, in float32; the processor stays ours, because that of
transformers 5 takes no prompts by position.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import idefics
import mistral_tokenizer
from idefics.config import Idefics1Config
from idefics.config.presets import preset
from idefics.model.idefics1 import Idefics1
from idefics.weights.init import initialize
from idefics.weights.save import save_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SNIPPETS = Path(__file__).parents[1] / "golden" / "snippets"
CARD = "from transformers import IdeficsForVisionText2Text, AutoProcessor\n"
OURS = "from idefics import IdeficsForVisionText2Text, AutoProcessor\n"
REFERENCE = "from transformers import IdeficsForVisionText2Text\nfrom idefics import AutoProcessor\n"
KINDS = {".JPG": ("JPEG", (330, 250)), ".gif": ("GIF", (120, 90))}


@pytest.fixture(scope="module")
def image_server() -> Iterator[str]:
    """Serves a picture of the kind that each of the card's URLs names; the address."""

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, (width, height) = next(found for suffix, found in KINDS.items() if suffix in self.path)
            noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
            content = io.BytesIO()
            Image.fromarray(noise).save(content, kind)
            self.send_response(200)
            self.send_header("Content-Length", str(content.tell()))
            self.end_headers()
            self.wfile.write(content.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=["base", "instruct"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny-random-idefics` with the published files; base models have no `<end_of_utterance>`."""
    chat = kind == "instruct"
    folder = tmp_path_factory.mktemp(kind)
    raw = {**preset("tiny-random-idefics").to_dict(), "additional_vocab_size": 3 if chat else 2}
    model = Idefics1(Idefics1Config.from_dict(raw))
    initialize(model, seed=2, std=0.3)
    save_model(model, folder)
    mistral_tokenizer.build_checkpoint_of_2023(folder, end_of_utterance=chat)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_size": raw["vision_config"]["image_size"]}))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _run(kind: str, checkpoint: Path, server: str, imports: str, **changes: str) -> dict[str, Any]:
    """The snippet's variables after it ran, and what it printed."""
    text = (SNIPPETS / f"idefics_{kind}.py").read_text(encoding="utf-8")
    every = {
        re.escape(CARD): imports,
        r'"HuggingFaceM4/idefics-9b(-instruct)?"': repr(str(checkpoint)),
        r"https://(upload\.wikimedia\.org|static\.wikia\.nocookie\.net)": server,
        **changes,
    }
    for old, new in every.items():
        text, found = re.subn(old, lambda _, new=new: new, text)
        assert found, old
    variables: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, f"{kind} snippet", "exec"), variables)
    return {**variables, "printed": printed.getvalue()}


def test_the_snippet_runs_as_written(kind: str, checkpoint: Path, image_server: str) -> None:
    ran = _run(kind, checkpoint, image_server, OURS)
    assert type(ran["model"]) is idefics.IdeficsForVisionText2Text
    assert ran["model"].dtype == torch.bfloat16
    images = {"base": 1, "instruct": 2}[kind]
    assert ran["inputs"]["pixel_values"].shape == (1, images, 3, 28, 28)
    ids = ran["generated_ids"]
    assert ids.shape[0] == 1
    assert ran["inputs"]["input_ids"].shape[1] < ids.shape[1] <= 100
    assert not set(ids[0, ran["inputs"]["input_ids"].shape[1] :].tolist()) & {word[0] for word in ran["bad_words_ids"]}
    start = {"base": "In this picture from Asterix and Obelix, we can see", "instruct": "User: What is in this image?"}[kind]
    assert ran["generated_text"][0].strip().startswith(start)
    assert ran["printed"] == f"0:\n{ran['generated_text'][0]}\n\n"


def test_it_generates_what_transformers_does(kind: str, checkpoint: Path, image_server: str) -> None:
    exact = {r"torch\.bfloat16": "torch.float32"}
    ours = _run(kind, checkpoint, image_server, OURS, **exact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _run(kind, checkpoint, image_server, REFERENCE, **exact)
    assert type(theirs["model"]) is transformers.IdeficsForVisionText2Text
    assert ours["generated_ids"].tolist() == theirs["generated_ids"].tolist()
    new = ours["generated_ids"][0, ours["inputs"]["input_ids"].shape[1] :].tolist()
    assert len(set(new)) > 4, "answers too uniform to tell anything"


def test_the_notes_on_single_samples_and_images(kind: str, checkpoint: Path, image_server: str) -> None:
    """The card's comments: "--single sample mode", and "Images can be either URLs or PIL Images"."""
    single = {r"inputs = processor\(prompts, ": "inputs = processor(prompts[0], "}
    batched, alone = (_run(kind, checkpoint, image_server, OURS, **changes) for changes in ({}, single))
    assert batched["generated_ids"].tolist() == alone["generated_ids"].tolist()
    opened = [idefics.load_image(part) if part.startswith("http") else part for part in batched["prompts"][0]]
    options = {} if kind == "base" else {"add_end_of_utterance_token": False}
    again = batched["processor"](opened, return_tensors="pt", **options)
    for name, value in batched["inputs"].items():
        assert torch.equal(again[name], value), name
