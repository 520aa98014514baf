"""What every processor can say of itself and takes without a word, of both families, whole and in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import idefics
from fakes import tiny_processor, tiny_tokenizer
from idefics.errors import InputError, NotOffered, OptionError, TemplateError
from idefics.processor.idefics1 import IdeficsProcessor
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.image import ImageProcessor
from idefics.processor.square_image import SquareImageProcessor
from idefics.processor.tokenizer import Tokenizer

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def everything() -> dict[str, Any]:
    first = IdeficsProcessor(SquareImageProcessor(image_size=28), tiny_tokenizer())
    second = tiny_processor()
    return {
        "Idefics2": second,
        "images of Idefics2": second.image_processor,
        "Idefics": first,
        "images of Idefics": first.image_processor,
        "tokenizer": second.tokenizer,
    }


INPUTS = {
    "Idefics2": ["input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"],
    "images of Idefics2": ["pixel_values", "pixel_attention_mask"],
    "Idefics": ["input_ids", "attention_mask", "pixel_values", "image_attention_mask"],
    "images of Idefics": ["pixel_values"],
    "tokenizer": ["input_ids", "attention_mask"],
}


@pytest.mark.parametrize("name", INPUTS)
def test_settings_are_told_and_saved(tmp_path: Path, name: str) -> None:
    one = everything()[name]
    assert one.model_input_names == INPUTS[name]
    assert json.loads(one.to_json_string()) == json.loads(json.dumps(one.to_dict()))
    one.to_json_file(tmp_path / "told.json")
    assert json.loads((tmp_path / "told.json").read_text()) == json.loads(one.to_json_string())
    with pytest.raises(OptionError, match="push_to_hub = True is not offered"):
        one.save_pretrained(tmp_path / "saved", push_to_hub=True)
    assert not (tmp_path / "saved").exists()
    one.save_pretrained(tmp_path / "saved", push_to_hub=False)
    reader = getattr(type(one), "from_folder", None)
    again = reader(tmp_path / "saved")
    assert {**again.to_dict()} == {**one.to_dict()}


@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_square_images_by_themselves(tensors: str | None) -> None:
    images = idefics.IdeficsImageProcessor(image_size=28)
    plain = images([PICTURE, PICTURE])
    assert isinstance(plain, torch.Tensor)
    made = images(images=[PICTURE, PICTURE], return_tensors=tensors, do_rescale=True, resample=3, size=None)
    assert isinstance(made, np.ndarray if tensors == "np" else torch.Tensor)
    assert np.array_equal(np.asarray(made), plain.numpy())
    for larger in ({"image_size": 56}, {"size": {"height": np.int64(56), "width": 56}}):
        assert images.preprocess(PICTURE, **larger).shape == (1, 3, 56, 56)
    for options, message in (
        ({"do_resize": False}, "do_resize = False is not offered; only True is offered"),
        ({"size": {"height": 28, "width": 30}}, "is no square"),
        ({"size": {"shortest_edge": 28}}, "is no square"),
        ({"image_mean": "grey"}, "image_mean = 'grey' must be three numbers"),
        ({"image_size": 2.5}, "image_size = 2.5 must be a positive whole number"),
        ({"sizes": 28}, "sizes = 28 is not offered; there are image_mean, image_size, image_std, size, transform"),
        ({"return_tensors": "tf"}, "return_tensors = 'tf'"),
    ):
        with pytest.raises(OptionError, match=message):
            images(PICTURE, **options)


def test_images_of_several_sizes_by_themselves() -> None:
    images = idefics.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 42})
    plain = images(PICTURE, return_tensors="pt")
    made = images.preprocess([PICTURE], return_tensors="pt", data_format="channels_first", do_center_crop=False, device=None)
    assert torch.equal(made.pixel_values, plain.pixel_values)
    assert torch.equal(
        images(PICTURE, return_tensors="pt", do_rescale=True, do_normalize=np.bool_(True)).pixel_values, plain.pixel_values
    )
    whole = images(PICTURE, do_normalize=False, do_rescale=False)["pixel_values"]
    assert 0 <= whole.min() < 100 < whole.max() <= 255
    for options, message in (
        ({"do_center_crop": True}, "do_center_crop = True is not offered; only False is offered"),
        ({"do_crop": True}, "do_crop = True is not offered; there are do_convert_rgb, "),
        ({"do_resize": "no"}, "do_resize must be true or false, not 'no'"),
        ({"image_std": object()}, "image_std = .* must be three numbers"),
        ({"resample": "bicubic"}, "resample = 'bicubic' is not one of Pillow's filters"),
        ({"size": 5}, "size must be a mapping"),
    ):
        with pytest.raises(OptionError, match=message):
            images(PICTURE, **options)


@pytest.mark.parametrize("name", ["Idefics2", "Idefics"])
def test_whole_processors_take_what_changes_nothing(name: str) -> None:
    processor = everything()[name]
    plain = processor(text="<image>a", images=PICTURE, return_tensors="pt")
    nothing = {"return_token_type_ids": False, "verbose": True, "images_kwargs": {}, "do_resize": True, "text_pair": None}
    made = processor(text="<image>a", images=PICTURE, return_tensors="pt", **nothing)
    assert all(torch.equal(made[key], plain[key]) for key in plain)
    chat = [{"role": "user", "content": "a"}]
    told = processor.apply_chat_template(chat, tools=None, documents=[], continue_final_message=False)
    assert told == processor.apply_chat_template(chat)
    ids = processor.tokenizer("a", return_token_type_ids=False, stride=0)
    assert ids == processor.tokenizer("a")
    for call in (
        lambda: processor(text="a", return_offsets_mapping=True),
        lambda: processor.tokenizer("a", return_offsets_mapping=True),
        lambda: processor.apply_chat_template(chat, tokenize=True, return_offsets_mapping=True),
    ):
        with pytest.raises(OptionError, match="return_offsets_mapping = True is not offered"):
            call()


ASSISTANT = {"role": "assistant", "content": [{"type": "text", "text": "It is a"}]}
UNFINISHED = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}, ASSISTANT]
KEPT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}</s>{% endfor %}"
TRIMMED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] | trim }}</s>{% endfor %}"


@pytest.mark.parametrize("name", ["Idefics2", "Idefics"])
def test_chats_are_asked_for_as_in_the_reference(name: str) -> None:
    processor = everything()[name]
    chat = UNFINISHED[:1]
    told = processor.apply_chat_template(chat)
    nothing = {
        "padding": False,
        "truncation": False,
        "max_length": None,
        "return_dict": False,
        "sanitize_control_tokens": False,
    }
    assert processor.apply_chat_template(conversation=chat, chat_template=None, continue_final_message=False, **nothing) == told
    assert processor.apply_chat_template(chat, "{{ messages[0]['role'] }}") == "user"
    for options, message in (
        ({"tools": [{}]}, r"apply_chat_template\(tools=...\) is not offered here \(these models"),
        ({"documents": [{"text": "a"}]}, "put them into a message"),
        ({"return_assistant_tokens_mask": True, "tokenize": True}, r"idefics\.data\.labels"),
        ({"sanitize_control_tokens": True, "tokenize": True}, "chat_prompt"),
    ):
        with pytest.raises(NotOffered, match=message):
            processor.apply_chat_template(chat, **options)


@pytest.mark.parametrize("name", ["Idefics2", "Idefics"])
def test_a_chat_ends_with_its_last_text_to_be_continued(name: str) -> None:
    processor = everything()[name]

    def open_end(text: str = "It is a", template: str | None = None, **options: Any) -> Any:
        last = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        return processor.apply_chat_template([UNFINISHED[0], last], template, continue_final_message=True, **options)

    assert open_end() == "User: What?<end_of_utterance>\nAssistant: It is a"
    assert open_end("It is ") == "User: What?<end_of_utterance>\nAssistant: It is "
    assert open_end("It is ", KEPT) == "user: What?</s>assistant: It is "
    assert open_end("It is ", TRIMMED) == "user: What?</s>assistant: It is"
    whole = processor(text=open_end(), return_tensors="pt").input_ids
    assert torch.equal(open_end(tokenize=True, return_tensors="pt"), whole)
    assert processor.apply_chat_template(UNFINISHED, continue_final_message="content") == open_end()
    with pytest.raises(OptionError, match="continue_final_message and add_generation_prompt contradict"):
        open_end(add_generation_prompt=True)
    with pytest.raises(OptionError, match="continue_final_message = 'reasoning'"):
        processor.apply_chat_template(UNFINISHED, continue_final_message="reasoning")
    for template in ("{{ messages[0]['role'] }}", "{{ messages[-1]['content'][0]['text'] | upper }}"):
        with pytest.raises(TemplateError, match="drops or changes the last message's text"):
            open_end(template=template)
    with pytest.raises(TemplateError, match="no text to continue"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], continue_final_message=True)


@pytest.mark.parametrize("era", [{"return_tensors": "pt"}, {"device": None, "data_format": "channels_first"}])
def test_a_file_of_square_images_may_hold_what_says_nothing(era: dict[str, Any]) -> None:
    raw = {**SquareImageProcessor(image_size=28).to_dict(), **era}
    assert SquareImageProcessor.from_dict(raw) == SquareImageProcessor(image_size=28)


def test_another_kind_of_tokenizer_or_image_processor_is_named() -> None:
    class LlamaTokenizerFast:
        """As of another library."""

    for make in (
        lambda: Idefics2Processor(ImageProcessor(), LlamaTokenizerFast()),  # type: ignore[arg-type]
        lambda: IdeficsProcessor(SquareImageProcessor(), LlamaTokenizerFast()),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=r"takes no tokenizer of type .*LlamaTokenizerFast; Tokenizer.from_folder reads"):
            make()
    with pytest.raises(InputError, match=r"takes no image processor of type .*Tokenizer"):
        Idefics2Processor(tiny_tokenizer(), Tokenizer(tiny_tokenizer().backend))  # type: ignore[arg-type]
