"""What the first family's processor hands the engine: texts to the letter, padding blind; and what a transform may give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import mistral_tokenizer
from idefics.errors import InputError
from idefics.processor.idefics1 import IdeficsProcessor

IMAGE = Image.new("RGB", (30, 30), "red")


@pytest.fixture(scope="module")
def processor() -> IdeficsProcessor:
    return IdeficsProcessor.from_folder(mistral_tokenizer.checkpoint_of_2023(), image_size=28)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_sees_nothing(processor: IdeficsProcessor, side: str) -> None:
    prompts = ["<image>a", "<image>a much longer text than the other one"]
    inputs = processor.inputs(prompts, [[IMAGE], [IMAGE]], padding_side=side)
    padding_BT = inputs.attention_mask_BT == 0
    assert padding_BT[0].any()
    assert inputs.seen_BT is not None
    assert (inputs.seen_BT[padding_BT] == -1).all()
    assert (inputs.seen_BT[~padding_BT] == 0).sum() > 4


def test_texts_of_a_chat_are_read_to_the_letter(processor: IdeficsProcessor) -> None:
    text = "  two spaces before,\n\ttab and two after  "
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text in prompt
    for ids in (
        processor.inputs([prompt], [[IMAGE]]).input_ids_BT[0],
        processor.apply_chat_template(messages, tokenize=True, return_dict=True, images=[IMAGE], return_tensors="pt").input_ids[
            0
        ],
    ):
        assert text in processor.decode(ids)


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
