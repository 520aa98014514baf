"""Ours against `idefics1.json`, which transformers 4.40.2 made (see make_idefics1_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mistral_tokenizer
from golden.make_idefics1_golden import OPTIONS, PICTURES, PROMPTS, SIDE, WIDE, coloured, drawn, wide
from golden.make_processor_golden import short, summary
from idefics.processor import idefics1, image_mask
from idefics.processor.idefics1 import IdeficsProcessor
from idefics.processor.square_image import SquareImageProcessor

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("idefics1.json").read_text())


@pytest.fixture(scope="module")
def processors() -> dict[bool, IdeficsProcessor]:
    """By whether it is a base model's, which has no end of utterance."""
    folders = {base: mistral_tokenizer.checkpoint_of_2023(end_of_utterance=not base) for base in (False, True)}
    return {base: IdeficsProcessor.from_folder(folder, image_size=SIDE) for base, folder in folders.items()}


def as_recorded(processor: IdeficsProcessor, case: dict[str, Any]) -> dict[str, Any]:
    out = processor(drawn(PROMPTS[case["prompts"]]), padding_side=case["padding_side"], **OPTIONS[case["options"]])
    mask = out.image_attention_mask
    return {
        **{key: [short(row) for row in out[key].tolist()] for key in ("input_ids", "attention_mask")},
        "image_attention_mask": [short(row) for row in mask.flatten(1).long().tolist()],
        "mask": [list(mask.shape), str(mask.dtype)],
        "pixels": [[summary(image.numpy())["sha256"] for image in row] for row in out.pixel_values],
    }


def wrong(processors: dict[bool, IdeficsProcessor]) -> int:
    """How many golden prompts an implementation gets wrong."""
    seen = [as_recorded(processors[case["base"]], case) for case in GOLDEN["prompts"]]
    return sum(
        any(case[key] != value for key, value in ours.items()) for case, ours in zip(GOLDEN["prompts"], seen, strict=True)
    )


def test_golden_file_is_of_these_cases() -> None:
    assert GOLDEN["versions"]["transformers"] == "4.40.2"
    assert {case["prompts"] for case in GOLDEN["prompts"]} == set(PROMPTS)
    assert {case["options"] for case in GOLDEN["prompts"]} == set(OPTIONS)
    assert {tuple(case["picture"]) for case in GOLDEN["pixels"]} == set(PICTURES)
    assert len({json.dumps(case["image_attention_mask"]) for case in GOLDEN["prompts"]}) > 30


@pytest.mark.parametrize(
    "case", GOLDEN["prompts"], ids=lambda c: f"{c['prompts']}-{c['options']}-{c['padding_side']}{'-base' * c['base']}"
)
def test_prompts(processors: dict[bool, IdeficsProcessor], case: dict[str, Any]) -> None:
    for key, value in as_recorded(processors[case["base"]], case).items():
        assert value == case[key], key


@pytest.mark.parametrize("case", GOLDEN["pixels"], ids=lambda c: f"{c['picture']}-{c['side']}")
def test_pixels(case: dict[str, Any]) -> None:
    images = SquareImageProcessor(image_size=case["side"])
    assert images.processed_sizes(*case["picture"][:2]) == [(case["side"], case["side"])]
    seen = summary(images.preprocess(coloured(*case["picture"]))[0].numpy())
    assert seen["shape"] == case["shape"]
    assert seen["spots"] == pytest.approx(case["spots"], abs=1e-6)
    assert seen["mean"] == pytest.approx(case["mean"], abs=1e-6)
    assert seen["sha256"] == case["sha256"]


@pytest.mark.parametrize("mode", WIDE)
def test_sixteen_bits_are_scaled_where_the_reference_turns_them_white(mode: str) -> None:
    theirs = dict(GOLDEN["wide"])[mode]
    images = SquareImageProcessor(image_size=SIDE)
    red = images.preprocess(wide(mode))[0, 0]
    ours = float((red > (1 - 1e-4 - images.image_mean[0]) / images.image_std[0]).float().mean())
    assert theirs > 0.9
    assert ours < 0.1


# Mutations: each mistake that other implementations made must break the golden cases above.


def test_mutation_the_end_of_a_document_is_not_seen(
    processors: dict[bool, IdeficsProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        idefics1, "seen_images", lambda ids, **names: image_mask.seen_images(ids, **{**names, "eos_token_id": None})
    )
    assert 3 <= wrong(processors) < len(GOLDEN["prompts"]) / 2


def test_mutation_text_before_the_first_image_sees_it(
    processors: dict[bool, IdeficsProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers#26428 and #26839."""
    monkeypatch.setattr(idefics1, "seen_images", lambda ids, **names: image_mask.seen_images(ids, **names).clamp(min=0))
    assert wrong(processors) > 20


def test_mutation_the_mask_is_one_token_late(processors: dict[bool, IdeficsProcessor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        idefics1,
        "seen_images",
        lambda ids, **names: torch.nn.functional.pad(image_mask.seen_images(ids, **names)[:, :-1], (1, 0), value=-1),
    )
    assert wrong(processors) > 20


def test_mutation_neighbours_do_not_share_their_fake_token(
    processors: dict[bool, IdeficsProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = "<fake_token_around_image><image><fake_token_around_image>"
    monkeypatch.setattr(idefics1, "_spelled", lambda pieces: "".join(block if p is None else p for p in pieces))
    assert wrong(processors) >= 5


def test_mutation_no_end_of_utterance_by_itself(
    processors: dict[bool, IdeficsProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers 5 does."""
    monkeypatch.setattr(IdeficsProcessor, "_marks_utterances", lambda _self, asked: bool(asked))
    assert wrong(processors) >= 5


def test_mutation_bilinear() -> None:
    case = next(c for c in GOLDEN["pixels"] if c["picture"][0] == 300 and c["side"] == 224)
    images = SquareImageProcessor()
    object.__setattr__(images, "_squares", type(images._squares)(**{**vars(images._squares), "resample": 2}))
    seen = summary(images.preprocess(coloured(*case["picture"]))[0].numpy())
    assert seen["spots"] != pytest.approx(case["spots"], abs=1e-3)
