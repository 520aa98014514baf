"""What the first family's processor hands the engine: texts to the letter, padding blind; and what a transform may give."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image

import mistral_tokenizer
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.processor import idefics1, interleaved
from idefics.processor.idefics1 import IdeficsProcessor

IMAGE = Image.new("RGB", (30, 30), "red")


@pytest.fixture(scope="module")
def processor() -> IdeficsProcessor:
    return IdeficsProcessor.from_folder(mistral_tokenizer.checkpoint_of_2023(), image_size=28)


def padding_is_blind(processor: IdeficsProcessor) -> bool:
    blind = True
    for side in ("left", "right"):
        prompts = ["<image>a", "<image>a much longer text than the other one"]
        inputs = processor.inputs(prompts, [[IMAGE], [IMAGE]], padding_side=side)
        padding_BT = inputs.attention_mask_BT == 0
        assert padding_BT[0].any()
        assert inputs.seen_BT is not None
        assert (inputs.seen_BT[~padding_BT] == 0).sum() > 4
        blind &= bool((inputs.seen_BT[padding_BT] == -1).all())
    return blind


def test_padding_sees_nothing(processor: IdeficsProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert padding_is_blind(processor)
    honest = IdeficsProcessor.inputs

    def unmasked(self: IdeficsProcessor, *given: Any, **options: Any) -> ModelInputs:
        inputs = honest(self, *given, **options)
        return dataclasses.replace(inputs, seen_BT=self._seen(inputs.input_ids_BT))

    monkeypatch.setattr(IdeficsProcessor, "inputs", unmasked)
    assert not padding_is_blind(processor), "padding that sees would not be noticed"


def reads_to_the_letter(processor: IdeficsProcessor) -> bool:
    text = "  two spaces before,\n\ttab and two after  "
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    rows = (
        processor.inputs([prompt], [[IMAGE]]).input_ids_BT,
        processor.apply_chat_template(messages, images=[IMAGE], **whole).input_ids,
    )
    found = [text in processor.decode(ids[0]) for ids in rows]
    assert found[0] == found[1], "the two routes differ"
    return text in prompt and all(found)


@pytest.mark.parametrize("module", [idefics1, interleaved])
def test_texts_of_a_chat_are_read_to_the_letter(
    processor: IdeficsProcessor, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reads_to_the_letter(processor)
    honest = interleaved.pieces_of_text

    def stripped(text: str) -> list[str | None]:
        return [piece if piece is None else piece.replace("  ", " ").strip() for piece in honest(text)]

    monkeypatch.setattr(module, "pieces_of_text", stripped)
    with pytest.raises(AssertionError):
        assert reads_to_the_letter(processor), "texts that are stripped would not be noticed"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda image: image, "gives a Image, not a tensor"),
        (lambda _: "red", "gives a str, not a tensor"),
        (lambda _: None, "gives a NoneType, not a tensor"),
        (lambda _: torch.zeros(28, 28), r"shape \(28, 28\); \(3, height, width\) is due"),
        (lambda _: torch.zeros(28, 28, 3), r"shape \(28, 28, 3\)"),
        (lambda _: torch.zeros(1, 3, 28, 28), r"shape \(1, 3, 28, 28\)"),
        (lambda _: torch.zeros(3, 0, 28), r"shape \(3, 0, 28\)"),
        (lambda _: 3.0, r"shape \(\)"),
    ],
)  # fmt: skip
def test_transforms_that_give_no_pixels(processor: IdeficsProcessor, made: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        processor(["a", IMAGE], transform=made)
