from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mistral_tokenizer
from golden.make_processor_golden import picture
from idefics.config.presets import preset
from idefics.errors import CheckpointNotFound, ConfigError, ImageCountError, ImageError, InputError, OptionError, TemplateError
from idefics.inputs import pixels_of
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.image import ImageProcessor
from idefics.processor.tokenizer import Tokenizer

IMAGE, FAKE = 32001, 32000
SMALL = {"shortest_edge": 28, "longest_edge": 56}


def test_expansion(processor: Idefics2Processor) -> None:
    f, i = "<fake_token_around_image>", "<image>" * 3
    whole = processor.adjusted(split=False)
    assert whole.expand("a<image>b") == f"a{f}{i}{f}b"
    assert whole.expand("<image><image>") == f"{f}{i}{f}{i}{f}"
    assert whole.expand("plain") == "plain"
    assert processor.expand("<image>") == f"{f}{i}{f}{i}{f}{i}{f}{i}{f}{i}{f}", "adjusting leaves the original as it is"


@pytest.mark.parametrize("split", [None, False, True])
@pytest.mark.parametrize("size", [None, {"shortest_edge": 14, "longest_edge": 20}])
def test_call_options_move_pixels_and_tokens_together(processor: Idefics2Processor, split: bool | None, size: Any) -> None:
    out = processor("<image> and <image>", [picture(50, 90), picture(20, 20)], do_image_splitting=split, size=size)
    pixels = out.pixel_values
    assert out.input_ids[0].count(IMAGE) == 3 * pixels.shape[1]
    assert pixels.shape[1] == (2 if split is False else 10), "the folder splits by default"
    assert pixels.shape[-2:] == ((56, 31) if size is None else (20, 20))
    assert processor("<image>", picture(9, 9)).input_ids[0].count(IMAGE) == 15, "options of a call do not stick"


def test_batches_with_rows_without_images(processor: Idefics2Processor) -> None:
    texts, images = (
        ["first row is text only", "<image>x", "<image><image>"],
        [[], [picture(60, 40)], [picture(9, 9), picture(30, 80)]],
    )
    out = processor(texts, images, padding=True, return_tensors="pt", do_image_splitting=False)
    assert list(out) == ["input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"]
    assert out.pixel_values.shape == (3, 2, 3, 56, 56)
    assert out.pixel_values.dtype == torch.float32
    assert out.pixel_attention_mask.shape == (3, 2, 56, 56)
    assert out.pixel_attention_mask.dtype == out.attention_mask.dtype == out.input_ids.dtype == torch.int64
    assert [[int(m.any()) for m in row] for row in out.pixel_attention_mask] == [[0, 0], [1, 0], [1, 1]]
    assert [int((row == IMAGE).sum()) for row in out.input_ids] == [0, 3, 6]
    flat = processor(
        texts, [image for row in images for image in row], padding=True, return_tensors="pt", do_image_splitting=False
    )
    assert torch.equal(flat.pixel_values, out.pixel_values)
    assert torch.equal(flat.input_ids, out.input_ids)
    for i in range(3):
        alone = processor(texts[i], images[i], do_image_splitting=False)
        ids = out.input_ids[i][out.attention_mask[i].bool()]
        assert alone.input_ids[0] == ids.tolist(), "a batch of one equals a batch of many"


def test_text_alone_and_images_alone(processor: Idefics2Processor) -> None:
    assert list(processor("hello")) == ["input_ids", "attention_mask"]
    assert list(processor(["a", "b"], [[], []], padding=True)) == ["input_ids", "attention_mask"]
    assert list(processor(images=picture(9, 9))) == ["pixel_values", "pixel_attention_mask"]
    assert list(processor("hello", return_attention_mask=False)) == ["input_ids"]
    assert isinstance(processor(images=[picture(9, 9)]).pixel_values, np.ndarray)


def test_interleaved_prompts(processor: Idefics2Processor) -> None:
    image = picture(30, 30)
    mixed = processor([["User:", image, "Who?"], ["no image"]], padding=True, return_tensors="pt")
    plain = processor(["User:<image>Who?", "no image"], [[image], []], padding=True, return_tensors="pt")
    assert all(torch.equal(mixed[key], plain[key]) for key in plain)


def test_alpha_is_dropped_here_and_composited_by_the_image_processor_alone(processor: Idefics2Processor) -> None:
    image = picture(30, 30, "RGBA")
    image.putalpha(0)
    for route, white in ((processor(images=image), False), (processor.image_processor(image), True)):
        seen = route.pixel_values[0][np.repeat(route.pixel_attention_mask[0, :, None], 3, axis=1) == 1]
        assert bool((seen == 1).all()) == white


def test_padding_sides_and_truncation(processor: Idefics2Processor) -> None:
    texts = ["one two three four", "one"]
    assert processor(texts, padding=True).input_ids[1][0] == 0
    assert processor(texts, padding=True, padding_side="right").input_ids[1][-1] == 0
    assert [len(row) for row in processor(texts, padding="max_length", max_length=9).input_ids] == [9, 9]
    assert [len(row) for row in processor(texts, max_length=3).input_ids] == [3, 2], "as 4.40: a limit alone truncates"
    assert processor("one", add_special_tokens=False).input_ids == [[624]]
    with pytest.raises(OptionError, match="max_length = 3 has no effect"):
        processor(texts, max_length=3, truncation=False)


@pytest.mark.parametrize("limit", [2, 5, 17])
def test_truncation_never_cuts_an_image(processor: Idefics2Processor, limit: int) -> None:
    with pytest.raises(InputError, match=f"truncation from 2[0-9] to {limit} tokens would cut into an image"):
        processor("<image> tail of text", picture(9, 9), truncation=True, max_length=limit)


def test_truncation_after_the_images_is_fine(processor: Idefics2Processor) -> None:
    assert len(processor("<image> tail of text", picture(9, 9), truncation=True, max_length=24).input_ids[0]) == 24


def test_wrong_input_is_named(processor: Idefics2Processor, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"do_image_spliting = True is not offered; there are .*do_image_splitting, .*max_length"
    ):
        processor("a", do_image_spliting=True)
    with pytest.raises(ImageCountError, match=r"the prompt has 1 image placeholder.*but 0 image"):
        processor("<image>")
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        processor("<image>", tmp_path / "none.png")
    with pytest.raises(OptionError, match="size"):
        processor("<image>", picture(9, 9), size={"longest_edge": 448})
    with pytest.raises(InputError, match="padding=True"):
        processor(["a", "b c d"], return_tensors="pt")
    with pytest.raises(ImageError, match="1x9 pixels cannot be split"):
        processor("<image>", picture(1, 9))


def test_inputs_for_the_engine(processor: Idefics2Processor) -> None:
    prompts, images = ["a", "<image>b<image>"], [[], [picture(60, 40), picture(9, 9)]]
    batch = processor.adjusted(split=False).inputs(prompts, images)
    assert batch.images_per_row == (0, 2)
    assert [tuple(image.shape) for image in batch.images_CHW] == [(3, 37, 56), (3, 28, 28)]
    padded = processor(prompts, images, padding=True, padding_side="left", return_tensors="pt", do_image_splitting=False)
    assert torch.equal(batch.input_ids_BT, padded.input_ids)
    assert torch.equal(batch.attention_mask_BT, padded.attention_mask)
    assert torch.equal(pixels_of(batch.images_CHW[0]), padded.pixel_values[1, 0, :, :37, :56])
    split = processor.adjusted(max_image_size=8).inputs(prompts, images, padding_side="right")
    assert {max(image.shape) for image in split.images_CHW} == {8}
    assert split.images_per_row == (0, 10)
    assert int(split.attention_mask_BT[0, -1]) == 0
    assert not processor.inputs(["x"], [[]]).images_CHW
    with pytest.raises(ImageCountError, match=r"text\[1\]"):
        processor.inputs(prompts, [[], []])
    with pytest.raises(InputError):
        processor.inputs(None, [[]])  # type: ignore[arg-type]


MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


def test_chat_template(processor: Idefics2Processor) -> None:
    prompt = "User:<image>What?<end_of_utterance>\nAssistant:"
    image = picture(30, 30)
    assert processor.apply_chat_template(MESSAGES, add_generation_prompt=True) == prompt
    assert processor.apply_chat_template([MESSAGES, MESSAGES], add_generation_prompt=True) == [prompt, prompt]
    assert processor.apply_chat_template(MESSAGES, chat_template="{{ bos_token }}x{{ messages | length }}") == "<s>x1"
    carrying = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True}
    for messages, images in ((MESSAGES, [image]), (MESSAGES, image), (carrying, None)):
        out = processor.apply_chat_template(
            messages, images=images, return_dict=True, return_tensors="pt", size=SMALL, **options
        )
        assert torch.equal(out.input_ids, processor(prompt, image, return_tensors="pt").input_ids)
        assert out.pixel_values.shape == (1, 5, 3, 30, 30)
    ids = processor.apply_chat_template(carrying, **options)
    assert ids == out.input_ids[0].tolist()
    both = processor.apply_chat_template([MESSAGES, carrying], images=[image], **options)
    assert both == [ids, ids]
    with_bos = processor.apply_chat_template(
        [{"role": "user", "content": "a"}], chat_template="{{ bos_token }}a", tokenize=True
    )
    assert with_bos == [1, 264], "one <s>, not two"


def test_chat_template_errors(processor: Idefics2Processor) -> None:
    with pytest.raises(ImageCountError, match=r"the chat has 1 image placeholder.*but 0"):
        processor.apply_chat_template(MESSAGES, tokenize=True)
    with pytest.raises(OptionError, match="padding, return_tensors: has no effect without tokenize"):
        processor.apply_chat_template(MESSAGES, padding=True, return_tensors="pt")
    with pytest.raises(OptionError, match="return_dict"):
        processor.apply_chat_template(MESSAGES, return_dict=True)
    with pytest.raises(TemplateError, match=r"messages\[0\]"):
        processor.apply_chat_template([{"role": "user"}])
    base = Idefics2Processor.from_folder(mistral_tokenizer.checkpoint(end_of_utterance=False))
    assert base.end_of_utterance_id is None
    with pytest.raises(TemplateError, match="no chat template"):
        base.apply_chat_template(MESSAGES)


def test_decoding(processor: Idefics2Processor) -> None:
    ids = processor("<image>In this", picture(9, 9), do_image_splitting=False, return_tensors="pt").input_ids
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["In this"]
    assert processor.decode(ids[0]).startswith("<s><fake_token_around_image><image><image>")


def test_names(processor: Idefics2Processor) -> None:
    assert (processor.image_token, processor.image_token_id) == ("<image>", IMAGE)
    assert (processor.fake_image_token, processor.fake_image_token_id) == ("<fake_token_around_image>", FAKE)
    assert (processor.end_of_utterance_id, processor.image_seq_len) == (32002, 3)


def test_overrides(folder: Path) -> None:
    changed = Idefics2Processor.from_folder(
        folder,
        do_image_splitting=False,
        size={"longest_edge": 448, "shortest_edge": 378},
        padding_side="right",
        chat_template="x",
    )
    assert not changed.image_processor.do_image_splitting
    assert changed.image_processor.size["longest_edge"] == 448
    assert (changed.tokenizer.padding_side, changed.chat_template, changed.image_seq_len) == ("right", "x", 64)
    with pytest.raises(OptionError, match="do_image_spliting"):
        Idefics2Processor.from_folder(folder, do_image_spliting=False)
    with pytest.raises(OptionError, match="image_seq_len = 0"):
        Idefics2Processor.from_folder(folder, image_seq_len=0)
    with pytest.raises(OptionError, match="image_seq_len = 1000000000"):
        Idefics2Processor.from_folder(folder, image_seq_len=10**9)
    with pytest.raises(OptionError, match="size"):
        Idefics2Processor.from_folder(folder, size={"longest_edge": 448})


def test_saving(processor: Idefics2Processor, tmp_path: Path) -> None:
    processor.chat_template = "{{ messages[0].role }}\n"
    processor.save_pretrained(str(tmp_path / "new" / "folder"))
    saved = tmp_path / "new" / "folder"
    again = Idefics2Processor.from_folder(saved)
    assert again.image_processor == processor.image_processor
    assert (again.image_seq_len, again.chat_template) == (3, processor.chat_template)
    assert again("a<image>", picture(9, 9)).input_ids == processor("a<image>", picture(9, 9)).input_ids
    assert sorted(path.name for path in saved.iterdir()) == [
        "chat_template.jinja", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert "image_processor" not in json.loads((saved / "processor_config.json").read_text()), "4.40 cannot read it nested"


def test_saving_over_another_template_leaves_none_behind(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "old"}')
    (tmp_path / "chat_template.jinja").write_text("old")
    base = Idefics2Processor.from_folder(mistral_tokenizer.checkpoint(end_of_utterance=False))
    base.save_pretrained(tmp_path)
    assert Idefics2Processor.from_folder(tmp_path).chat_template is None


def test_folders_that_are_incomplete(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointNotFound, match=r"preprocessor_config\.json does not exist"):
        Idefics2Processor.from_folder(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(ConfigError, match="image_processor must be an object"):
        Idefics2Processor.from_folder(tmp_path)
    (tmp_path / "processor_config.json").write_text(
        '{"image_processor": {"size": {"height": 8, "width": 9}}, "image_seq_len": 2}'
    )
    loaded = Idefics2Processor.from_folder(tmp_path)
    assert loaded.image_seq_len == 2
    assert loaded("<image>", picture(20, 20)).pixel_values.shape == (1, 1, 3, 8, 9)
    bare = mistral_tokenizer.backend()
    tokens = Tokenizer(type(bare).from_str(bare.to_str().replace("<fake_token_around_image>", "<other>")))
    with pytest.raises(ConfigError, match="no '<fake_token_around_image>'"):
        Idefics2Processor(ImageProcessor(), tokens)


def test_settings_of_a_config(processor: Idefics2Processor, tokenizer: Tokenizer) -> None:
    published = Idefics2Processor.for_config(preset("idefics2-8b"), tokenizer)
    assert published.image_processor == ImageProcessor(do_image_splitting=True)
    assert (published.tokens_per_sub_image, published.image_seq_len) == (64, 64)
    nano = preset("idefics2-nano")
    assert Idefics2Processor.tokens_of(nano) == 32
    images = Idefics2Processor.images_for(nano)
    assert (images.size, images.do_image_splitting) == ({"shortest_edge": 84, "longest_edge": 168}, False)
    assert images.adjusted(max_image_size=70).size == {"shortest_edge": 70, "longest_edge": 70}
    assert processor.with_small_images(nano).image_processor.size == {"shortest_edge": 42, "longest_edge": 105}
    with pytest.raises(ConfigError, match="model_type 'idefics' is none for Idefics2Processor"):
        Idefics2Processor.for_config(preset("idefics-9b"), tokenizer)


@pytest.mark.parametrize("size", [(50, 90), (20, 20), (57, 3)])
@pytest.mark.parametrize("options", [{}, {"do_image_splitting": False}, {"do_resize": False}])
def test_processed_sizes_are_those_of_the_pixels(size: tuple[int, int], options: dict[str, Any]) -> None:
    images = dataclasses.replace(ImageProcessor(size=SMALL, do_image_splitting=True), **options)
    assert images.processed_sizes(*size) == [pixels.shape[:0:-1] for pixels in images.pixels([picture(*size)])]


def test_a_folder_of_the_first_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"processor_class = 'IdeficsProcessor', not 'Idefics2Processor'") as caught:
        Idefics2Processor.from_folder(mistral_tokenizer.checkpoint_of_2023())
    assert "\n" not in str(caught.value)


# Mutations: the traps that the reference fell into must be seen by the checks above.


def test_mutation_tokens_left_behind_by_a_per_call_option(
    processor: Idefics2Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers moves only the pixels when do_image_splitting comes with the call."""
    expanded = Idefics2Processor._expanded
    monkeypatch.setattr(
        Idefics2Processor, "_expanded", lambda self, prompt, _worker: expanded(self, prompt, self.image_processor)
    )
    out = processor("<image>", picture(20, 20), do_image_splitting=False)
    assert out.input_ids[0].count(IMAGE) != 3 * out.pixel_values.shape[1]


def test_mutation_base_tokenizer_given_end_of_utterance() -> None:
    """Transformers adds the token to every tokenizer; the base model has no embedding for it (transformers#30464)."""
    base = Idefics2Processor.from_folder(mistral_tokenizer.checkpoint(end_of_utterance=False))
    assert max(base.tokenizer.encode("a<end_of_utterance>")) < 32002
    base.tokenizer.backend.add_special_tokens(["<end_of_utterance>"])
    assert max(base.tokenizer.encode("a<end_of_utterance>")) == 32002
