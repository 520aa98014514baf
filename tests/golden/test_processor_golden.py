"""Ours against `processor.json`, which transformers 4.40.2 made (see make_processor_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mistral_tokenizer
from golden.make_processor_golden import CHATS, END, FAKE, PICTURES, SIZES, TEXTS, picture, summary
from idefics.processor.fetch import load_image
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.image import ImageProcessor
from idefics.processor.tokenizer import Tokenizer

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("processor.json").read_text())


@pytest.fixture(scope="module")
def processor() -> Idefics2Processor:
    return Idefics2Processor.from_folder(mistral_tokenizer.checkpoint())


def long(ids: list[Any]) -> list[int]:
    return [i for entry in ids for i in ([entry[0]] * entry[1] if isinstance(entry, list) else [entry])]


def ids_of(processor: Idefics2Processor, text: str, split: bool) -> list[int]:
    return processor.tokenizer.encode(processor.adjusted(split=split).expand(text))


def test_golden_file_is_of_these_cases() -> None:
    assert GOLDEN["versions"]["transformers"] == "4.40.2"
    assert [case["text"] for case in GOLDEN["texts"]] == TEXTS
    assert [case["messages"] for case in GOLDEN["chats"]] == CHATS
    assert {tuple(case["picture"]) for case in GOLDEN["pixels"]} == set(PICTURES)


def test_our_tokenizer_json_is_what_4_40_converts() -> None:
    source = (mistral_tokenizer.checkpoint() / "tokenizer.json").read_text(encoding="utf-8")
    assert mistral_tokenizer.digest(source) == GOLDEN["tokenizer_json_digest"]


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: repr(case["text"])[:40])
@pytest.mark.parametrize("split", [False, True])
def test_ids(processor: Idefics2Processor, case: dict[str, Any], split: bool) -> None:
    assert ids_of(processor, case["text"], split) == long(case["ids"][str(split)])


@pytest.mark.parametrize("case", GOLDEN["chats"], ids=range(len(GOLDEN["chats"])))
@pytest.mark.parametrize("generate", [False, True])
def test_chats(processor: Idefics2Processor, case: dict[str, Any], generate: bool) -> None:
    prompt = processor.apply_chat_template(case["messages"], add_generation_prompt=generate)
    assert prompt == case[str(generate)]["text"]
    assert ids_of(processor, prompt, True) == long(case[str(generate)]["ids"])


def test_left_padded_batch(processor: Idefics2Processor) -> None:
    texts = GOLDEN["batch"]["text"]
    images = [[picture(30, 30)] * text.count("<image>") for text in texts]
    batch = processor(text=texts, images=images, padding=True, do_image_splitting=False)
    for key in ("input_ids", "attention_mask"):
        assert batch[key] == [long(row) for row in GOLDEN["batch"][key]]


@pytest.mark.parametrize("case", GOLDEN["pixels"], ids=lambda c: f"{c['picture']}-{c['size']}-{c['split']}-{c['route']}")
def test_pixels(case: dict[str, Any]) -> None:
    image = picture(*case["picture"])
    if case["route"] == "processor":
        image = load_image(image)
    images = ImageProcessor().with_options(size=SIZES[case["size"]], do_image_splitting=case["split"])
    pixels = images.pixels([image])
    assert len(pixels) == len(case["images"]) == (5 if case["split"] else 1)
    for ours, golden in zip(pixels, case["images"], strict=True):
        seen = summary(ours)
        if isinstance(golden, str):
            assert seen["sha256"] == golden
        else:
            assert seen["shape"] == golden["shape"]
            assert seen["spots"] == pytest.approx(golden["spots"], abs=1e-6)
            assert seen["mean"] == pytest.approx(golden["mean"], abs=1e-6)
            assert seen["sha256"] == golden["sha256"]


def test_decode(processor: Idefics2Processor) -> None:
    for text, (whole, skipped) in zip(TEXTS, GOLDEN["decode"], strict=True):
        ids = processor.tokenizer.encode(text)
        assert processor.decode(ids) == whole
        assert processor.decode(ids, skip_special_tokens=True) == skipped
        assert processor.batch_decode(np.array([ids]), skip_special_tokens=True) == [skipped]


# Mutations: each mistake that other implementations made must break the golden cases above.


def _wrong(ids: Any) -> int:
    """How many golden texts an implementation gets wrong."""
    return sum(ids(case["text"]) != long(case["ids"]["False"]) for case in GOLDEN["texts"])


def test_mutation_the_space_of_transformers_5(processor: Idefics2Processor) -> None:
    import re

    def spaced(text: str) -> list[int]:
        prompt = processor.adjusted(split=False).expand(text)
        return processor.tokenizer.encode(re.sub(f"{FAKE}(?=[^\\s<])", f"{FAKE} ", prompt))

    assert _wrong(spaced) >= 5


def test_mutation_neighbouring_fake_tokens_kept(processor: Idefics2Processor) -> None:
    block = FAKE + "<image>" * 64 + FAKE
    assert _wrong(lambda text: processor.tokenizer.encode(text.replace("<image>", block))) >= 2


def test_mutation_metaspace_first_only(processor: Idefics2Processor) -> None:
    """The segment after a special token must get its own `▁`, which Metaspace(prepend_scheme="first") does not give."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import pre_tokenizers

    backend = Backend.from_str(processor.tokenizer.backend.to_str())
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer = Tokenizer(backend, processor.tokenizer.config)
    assert _wrong(lambda text: tokenizer.encode(processor.adjusted(split=False).expand(text))) >= 5


def test_mutation_end_of_utterance_unknown() -> None:
    base = Idefics2Processor.from_folder(mistral_tokenizer.checkpoint(end_of_utterance=False))
    assert base.tokenizer.backend.token_to_id(END) is None, "the base tokenizer must not be given the token"
    assert _wrong(lambda text: ids_of(base, text, False)) >= 4


def test_mutation_rounded_instead_of_truncated_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from idefics.processor import image as module

    monkeypatch.setattr(module, "resized_size", lambda w, h, _size: (60, max(round(60 * h / w), 28)))
    case = next(c for c in GOLDEN["pixels"] if c["picture"][0] == 1333 and c["size"] == "small" and not c["split"])
    seen = ImageProcessor().pixels([picture(1333, 999)])[0]
    assert seen.shape == (3, 45, 60)
    assert case["images"][0]["shape"] == [3, 44, 60]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_mutation_the_other_alpha_route(mode: str) -> None:
    of_mode = [c for c in GOLDEN["pixels"] if c["picture"][2] == mode and c["size"] == "default" and not c["split"]]
    digests = {case["route"]: case["images"][0]["sha256"] for case in of_mode}
    image = picture(*of_mode[0]["picture"])
    assert summary(ImageProcessor().pixels([image])[0])["sha256"] == digests["image_processor"] != digests["processor"]
