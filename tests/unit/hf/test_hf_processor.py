"""The processors: image options at load and per call move pixels and tokens together; alpha alone goes on white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from idefics import AutoProcessor, Idefics2ImageProcessor, Idefics2Processor, IdeficsImageProcessor, load_image
from idefics.errors import CheckpointNotFound, ImageCountError, OptionError
from idefics.inputs.padded import unpad_images

SIZE = {"longest_edge": 36, "shortest_edge": 18}


def _image_tokens(processor: Idefics2Processor, ids: torch.Tensor) -> int:
    return int((ids == processor.image_token_id).sum())


def test_options_at_load(tiny_checkpoint: Path, pictures: list[Image.Image]) -> None:
    small = AutoProcessor.from_pretrained(tiny_checkpoint, size=SIZE, do_image_splitting=True)
    inputs = small(text="<image>what", images=[pictures[0]], return_tensors="pt")
    assert _image_tokens(small, inputs.input_ids) == 5 * 4
    assert inputs.pixel_values.shape == (1, 5, 3, 24, 36)
    whole = AutoProcessor.from_pretrained(tiny_checkpoint)
    inputs = whole(text="<image>what", images=[pictures[0]], return_tensors="pt")
    assert _image_tokens(whole, inputs.input_ids) == 4
    assert inputs.pixel_values.shape == (1, 1, 3, 40, 60)


def test_options_per_call(processor: Idefics2Processor, tiny_checkpoint: Path, pictures: list[Image.Image]) -> None:
    texts, rows = ["<image>a<image>", "<image>the"], [pictures[:2], pictures[2:]]
    loaded = AutoProcessor.from_pretrained(tiny_checkpoint, size=SIZE, do_image_splitting=True)
    expected = loaded(text=texts, images=rows, padding=True, return_tensors="pt")
    called = processor(text=texts, images=rows, padding=True, return_tensors="pt", size=SIZE, do_image_splitting=True)
    assert set(called) == set(expected)
    for name, value in expected.items():
        assert torch.equal(called[name], value), name
    images, counts = unpad_images(called.pixel_values, called.pixel_attention_mask)
    assert counts == (10, 5)
    assert _image_tokens(processor, called.input_ids) == len(images) * processor.image_seq_len
    back = loaded(text=texts, images=rows, return_tensors=None, do_image_splitting=False)
    assert sum(map(list(back.input_ids[0]).count, [processor.image_token_id])) == 2 * 4
    assert not processor.image_processor.do_image_splitting, "a call must not change the processor"


def test_other_options_at_load(tiny_checkpoint: Path) -> None:
    assert AutoProcessor.from_pretrained(tiny_checkpoint, image_seq_len=7).image_seq_len == 7
    right = AutoProcessor.from_pretrained(tiny_checkpoint, padding_side="right")
    ids = right(text=["a b c", "a"], padding=True, return_tensors="pt").input_ids
    assert ids[1, -1] == 0
    with pytest.raises(OptionError, match=r"unknown image option\(s\): do_split"):
        AutoProcessor.from_pretrained(tiny_checkpoint, do_split=True)
    with pytest.raises(OptionError, match="size"):
        AutoProcessor.from_pretrained(tiny_checkpoint, size={"longest": 3})


def test_images_are_counted(processor: Idefics2Processor, pictures: list[Image.Image]) -> None:
    with pytest.raises(ImageCountError, match=r"2 image placeholder\(s\) but 1 image\(s\)"):
        processor(text="<image><image>", images=[pictures[0]], return_tensors="pt")


def test_the_image_processor_alone_puts_alpha_on_white(tiny_checkpoint: Path) -> None:
    alone = Idefics2ImageProcessor.from_pretrained(tiny_checkpoint)
    clear = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    half = Image.new("RGBA", (48, 48), (0, 0, 0, 127))
    out = alone([clear, half], return_tensors="pt")
    assert out.pixel_values.shape == (1, 2, 3, 48, 48)
    assert torch.equal(out.pixel_values[0, 0], torch.ones(3, 48, 48))
    torch.testing.assert_close(out.pixel_values[0, 1], torch.full((3, 48, 48), 128 / 127.5 - 1), atol=5e-3, rtol=0)
    dropped = alone(load_image(clear), return_tensors="pt").pixel_values
    assert torch.equal(dropped, -torch.ones(1, 1, 3, 48, 48)), "through load_image alpha is dropped, as in the processor"


def test_the_image_processor_alone_keeps_an_image_as_it_lies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(tmp_path / "turned.jpg", exif=exif)
    alone = Idefics2ImageProcessor.from_pretrained(tiny_checkpoint)
    assert alone(str(tmp_path / "turned.jpg")).pixel_values.shape == (1, 1, 3, 40, 60)
    assert load_image(str(tmp_path / "turned.jpg")).size == (40, 60)


def test_the_image_processors_options(tiny_checkpoint: Path, pictures: list[Image.Image]) -> None:
    split = Idefics2ImageProcessor.from_pretrained(tiny_checkpoint, do_image_splitting=True, size=SIZE)
    assert isinstance(split, Idefics2ImageProcessor)
    assert split(pictures[0]).pixel_values.shape == (1, 5, 3, 24, 36)
    called = Idefics2ImageProcessor(size=SIZE)(pictures[0], do_image_splitting=True)
    assert np.array_equal(called.pixel_values, split(pictures[0]).pixel_values)
    assert Idefics2ImageProcessor().size == {"shortest_edge": 378, "longest_edge": 980}
    with pytest.raises(OptionError, match="unknown image option"):
        Idefics2ImageProcessor.from_pretrained(tiny_checkpoint, sizes=SIZE)
    with pytest.raises(CheckpointNotFound, match="preprocessor_config"):
        Idefics2ImageProcessor.from_pretrained(tiny_checkpoint.parent)


def test_settings_may_be_assigned_after_loading(tiny_checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_checkpoint, do_image_splitting=True)
    assert type(processor.image_processor) is Idefics2ImageProcessor
    image = Image.new("RGB", (40, 40))
    sub_images = [processor(text="<image>", images=image, return_tensors="pt").pixel_values.shape[1]]
    processor.image_processor.do_image_splitting = False
    sub_images.append(processor(text="<image>", images=image, return_tensors="pt").pixel_values.shape[1])
    assert sub_images == [5, 1]
    assert processor.image_processor == AutoProcessor.from_pretrained(tiny_checkpoint, do_image_splitting=False).image_processor
    with pytest.raises(OptionError, match="do_image_splitting must be true or false, not 'no'"):
        processor.image_processor.do_image_splitting = "no"
    with pytest.raises(OptionError, match=r"no setting 'do_splitting'; there are .*do_image_splitting"):
        processor.image_processor.do_splitting = False
    squares = IdeficsImageProcessor()
    squares.image_size = 28
    assert squares.preprocess(image).shape == (1, 3, 28, 28)
    assert squares == IdeficsImageProcessor(image_size=28)
