"""The model card's snippets run as written, with only the import line changed, and generate what transformers generates.

`tests/golden/snippets` holds the card's text. What differs in a test is what a test cannot have: the model's name stands for
a tiny checkpoint with the real tokenizer, the images come from a server in this process, the device is the CPU, and fewer
tokens are generated.

Both snippets have words right after an image, where transformers 5 inserts a space. With `LlamaTokenizer` in the tokenizer's
config, as published, its ids are still those of 4.40, with which the card was written: the texts needed no change.
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

import mistral_tokenizer
from idefics.config import Idefics2Config
from idefics.config.presets import preset
from idefics.model.idefics2 import Idefics2
from idefics.processor.template import IDEFICS2_TEMPLATE
from idefics.weights.init import initialize
from idefics.weights.save import save_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SNIPPETS = Path(__file__).parents[1] / "golden" / "snippets"
CARD = """from transformers import AutoProcessor, AutoModelForVision2Seq
from transformers.image_utils import load_image
"""
OURS = "from idefics import AutoProcessor, AutoModelForVision2Seq, load_image\n"
# Transformers 5 has the class under its newer name only.
REFERENCE = """from transformers import AutoProcessor, AutoModelForImageTextToText as AutoModelForVision2Seq
from transformers.image_utils import load_image
"""
NEW_TOKENS = 16
SIZES = {"Statue-of-Liberty": (560, 420), "Skyline-Chicago": (50, 120), "Golden-Gate": (400, 131)}


@pytest.fixture(scope="module")
def image_server() -> Iterator[str]:
    """Serves a picture for each of the card's URLs; the address."""

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = next(name for name in SIZES if name in self.path)
            noise = np.random.default_rng(len(name)).integers(0, 256, (*SIZES[name][::-1], 3), dtype=np.uint8)
            content = io.BytesIO()
            Image.fromarray(noise).save(content, "PNG")
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
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
    """A tiny checkpoint with the published files; base models have no `<end_of_utterance>` and no splitting."""
    chat = kind == "instruct"
    folder = tmp_path_factory.mktemp(kind)
    raw = preset("tiny-random-idefics2").to_dict()
    raw["text_config"]["vocab_size"] = 32003 if chat else 32002
    model = Idefics2(Idefics2Config.from_dict(raw))
    initialize(model, seed=1, std=0.2)
    save_model(model, folder)
    mistral_tokenizer.build_checkpoint(folder, end_of_utterance=chat, do_image_splitting=chat)
    ends = [2, 32002] if chat else 2
    generation = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 0, "bad_words_ids": [[32000], [32001]]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    if chat:  # 4.40 has it in its code, as we have; transformers 5 wants the file
        (folder / "chat_template.jinja").write_text(IDEFICS2_TEMPLATE)
    return folder


def _run(kind: str, imports: str, checkpoint: Path, server: str, **further: str) -> dict[str, Any]:
    """The snippet's variables after it ran; `further` changes are class names to arguments for their `from_pretrained`."""
    text = (SNIPPETS / f"idefics2_{kind}.py").read_text(encoding="utf-8")
    changes = {
        re.escape(CARD): imports,
        r'"HuggingFaceM4/idefics2-8b(-base)?"': repr(str(checkpoint)),
        r"https://cdn\.britannica\.com": server,
        re.escape('DEVICE = "cuda:0"'): 'DEVICE = "cpu"',
        "max_new_tokens=500": f"max_new_tokens={NEW_TOKENS}",
    }
    name = re.escape(repr(str(checkpoint)))
    changes |= {
        f"{owner}.from_pretrained\\(\\s*{name},?": f"{owner}.from_pretrained({str(checkpoint)!r}, {arguments}, "
        for owner, arguments in further.items()
    }
    for old, new in changes.items():
        text, found = re.subn(old, lambda _, new=new: new, text)
        assert found, old
    variables: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, f"{kind} snippet", "exec"), variables)
    return {**variables, "printed": printed.getvalue()}


@pytest.fixture(scope="module")
def ours(kind: str, checkpoint: Path, image_server: str) -> dict[str, Any]:
    return _run(kind, OURS, checkpoint, image_server)


def test_the_snippet_runs_and_generates_what_transformers_does(
    kind: str, ours: dict[str, Any], checkpoint: Path, image_server: str
) -> None:
    assert ours["printed"] == f"{ours['generated_texts']}\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _run(kind, REFERENCE, checkpoint, image_server)
    assert type(theirs["model"]) is transformers.Idefics2ForConditionalGeneration
    for name in ("input_ids", "attention_mask", "pixel_attention_mask"):
        assert ours["inputs"][name].tolist() == theirs["inputs"][name].tolist(), name
    torch.testing.assert_close(ours["inputs"]["pixel_values"], theirs["inputs"]["pixel_values"], atol=1e-6, rtol=0)
    assert ours["generated_ids"].tolist() == theirs["generated_ids"].tolist()
    assert ours["generated_texts"] == theirs["generated_texts"]
    new = ours["generated_ids"][:, ours["inputs"]["input_ids"].shape[1] :]
    assert len(set(new.flatten().tolist())) > 4, "answers too uniform to tell anything"


def test_the_note_on_urls_holds(kind: str, ours: dict[str, Any], image_server: str) -> None:
    """\"Passing the image urls (instead of the actual pil images) to the processor is also possible\"."""
    urls = [f"{image_server}/{name}" for name in SIZES]
    if kind == "base":
        again = ours["processor"](text=ours["prompts"], images=[urls[:2], urls[2:]], padding=True, return_tensors="pt")
    else:
        again = ours["processor"](text=ours["prompt"], images=urls[:2], return_tensors="pt")
    for name, value in ours["inputs"].items():
        assert torch.equal(again[name], value), name


def test_the_text_is_what_the_card_prints(kind: str, ours: dict[str, Any]) -> None:
    """The part of the printed text that is the prompt's, as the card shows it (of 4.40: one space after an image)."""
    expected = {
        "base": [
            "In this image, we can see the city of New York, and more specifically the Statue of Liberty. In this image,",
            "In which city is that bridge located?",
        ],
        "instruct": [
            "User: What do we see in this image? \nAssistant: In this image, we can see the city of New York, and more "
            "specifically the Statue of Liberty. \nUser: And how about this image? \nAssistant:"
        ],
    }
    for text, start in zip(ours["generated_texts"], expected[kind], strict=True):
        assert text.startswith(start)


MODEL, PROCESSOR = "AutoModelForVision2Seq", "AutoProcessor"


@pytest.mark.parametrize(
    "advice",
    [
        {MODEL: "torch_dtype=torch.float16"},
        {MODEL: "torch_dtype=torch.bfloat16, _attn_implementation='flash_attention_2'"},
        {PROCESSOR: "do_image_splitting=False"},
        {PROCESSOR: "size= {'longest_edge': 448, 'shortest_edge': 378}"},
    ],
    ids=lambda advice: next(iter(advice.values())),
)
def test_the_cards_advice_on_memory_and_speed(
    kind: str, ours: dict[str, Any], checkpoint: Path, image_server: str, advice: dict[str, str]
) -> None:
    advised = _run(kind, OURS, checkpoint, image_server, **advice)
    if MODEL in advice:
        assert str(advised["model"].dtype) in advice[MODEL]
        assert advised["inputs"].keys() == ours["inputs"].keys()
        return
    tokens, pixels = (advised["inputs"][name].numel() for name in ("input_ids", "pixel_values"))
    smaller = "size" in advice[PROCESSOR]
    splitting_went = kind == "instruct" and not smaller
    assert (pixels < ours["inputs"]["pixel_values"].numel()) == (smaller or splitting_went)
    assert (max(advised["inputs"]["pixel_values"].shape[-2:]) <= 448) == smaller
    assert (tokens < ours["inputs"]["input_ids"].numel()) == splitting_went
