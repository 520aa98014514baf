from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from golden.make_processor_golden import picture
from idefics.errors import ConfigError, ImageError, InputError, OptionError
from idefics.processor.image import ImageProcessor, pad_images
from idefics.processor.sizes import check_size, processed_sizes, resized_size, sub_image_boxes

PUBLISHED = {"shortest_edge": 378, "longest_edge": 980}
SMALL = {"shortest_edge": 28, "longest_edge": 56}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((300, 200), (378, 378)), ((980, 980), (980, 980)), ((981, 981), (980, 980)), ((1920, 1080), (980, 551)),
        ((1080, 1920), (551, 980)), ((1, 1), (378, 378)), ((10000, 1), (980, 378)), ((1, 10000), (378, 980)),
        ((1000, 999), (980, 979)), ((980, 100), (980, 378)), ((500, 400), (500, 400)),
    ],
)  # fmt: skip
def test_resized_size(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert resized_size(*before, PUBLISHED) == after


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_resized_size_stays_within_the_limits(width: int, height: int) -> None:
    w, h = resized_size(width, height, PUBLISHED)
    assert 378 <= w <= 980
    assert 378 <= h <= 980
    assert resized_size(w, h, PUBLISHED) == (w, h)


@given(st.integers(2, 400), st.integers(2, 400))
def test_quarters_tile_the_image(width: int, height: int) -> None:
    *quarters, whole = sub_image_boxes(width, height, do_image_splitting=True)
    assert whole == (0, 0, width, height)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in quarters:
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()
    assert sum((r - left) * (b - t) for left, t, r, b in quarters) == width * height


def test_counting_without_an_image() -> None:
    assert processed_sizes(300, 200, size=PUBLISHED, do_image_splitting=True) == [(378, 378)] * 5
    program = """import sys, idefics.processor.sizes as s
print(s.resized_size(1, 1, {'height': 3, 'width': 4}))
print({'torch', 'PIL', 'numpy'} & set(sys.modules))"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out == "(4, 3)\nset()\n"


@pytest.mark.parametrize(
    "size",
    [{}, {"longest_edge": 980}, {"shortest_edge": 0, "longest_edge": 9}, {"shortest_edge": 9, "longest_edge": 8}, {"height": 3},
     448, {"shortest_edge": 1.5, "longest_edge": 9}, {"shortest_edge": True, "longest_edge": 9},
     {"longest": 3, "shortest_edge": 3}, {"height": 10**9, "width": 10**9}, {"shortest_edge": 10**9, "longest_edge": 10**9}],
)  # fmt: skip
def test_unusable_sizes(size: Any) -> None:
    with pytest.raises(OptionError, match="size"):
        check_size(size)
    with pytest.raises(ConfigError, match="size"):
        ImageProcessor.from_dict({"size": size})


def test_order_of_the_sub_images() -> None:
    image = Image.new("RGB", (40, 60))
    for box, colour in (((0, 0), "red"), ((20, 0), "lime"), ((0, 30), "blue"), ((20, 30), "white")):
        image.paste(colour, (*box, box[0] + 20, box[1] + 30))
    parts = ImageProcessor(size=SMALL, do_image_splitting=True).pixels([image])
    means = [tuple(int(v) for v in np.sign(part.mean((1, 2)))) for part in parts]
    assert means[:4] == [(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, 1)]
    assert [part.shape for part in parts] == [(3, 30, 28)] * 4 + [(3, 56, 37)]


@pytest.mark.parametrize("size", [(1, 1), (10000, 1), (1, 10000), (2, 1)], ids=str)
def test_extreme_images(size: tuple[int, int]) -> None:
    images = ImageProcessor(size=SMALL)
    assert images.pixels([picture(*size)])[0].shape[0] == 3
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels cannot be split"):
        images.with_options(do_image_splitting=True).pixels([picture(*size)])


def test_images_that_are_none() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        ImageProcessor().pixels([Image.new("RGB", (0, 3))])
    with pytest.raises(ImageError, match="Pillow image is due, not str"):
        ImageProcessor().pixels(["a.png"])  # type: ignore[list-item]
    with pytest.raises(ImageError, match="mode L and do_convert_rgb is off"):
        ImageProcessor(do_convert_rgb=False).pixels([Image.new("L", (3, 3))])


def test_padding_of_batches() -> None:
    images = ImageProcessor(do_resize=False)
    out = images([[picture(4, 6), picture(5, 3)], [], [picture(2, 2)]], return_tensors="pt")
    assert out.pixel_values.shape == (3, 2, 3, 6, 5)
    assert out.pixel_values.dtype == torch.float32
    assert out.pixel_attention_mask.dtype == torch.int64
    mask = out.pixel_attention_mask
    assert [[int(m.sum()) for m in row] for row in mask] == [[24, 15], [0, 0], [4, 0]]
    assert out.pixel_values[~mask.bool()[:, :, None].expand_as(out.pixel_values)].eq(0).all()
    assert torch.equal(out.pixel_values[2, 0, :, :2, :2], torch.from_numpy(images.pixels([picture(2, 2)])[0]))
    assert images([[], []]) == {}
    pixels, _ = pad_images([[np.ones((3, 2, 2), np.float32)]])
    assert pixels.shape == (1, 1, 3, 2, 2)


def test_without_padding() -> None:
    images = ImageProcessor(size=SMALL, do_pad=False)
    assert list(images([picture(30, 30), picture(30, 30)])) == ["pixel_values"]
    with pytest.raises(InputError, match="do_pad"):
        images([picture(30, 30), picture(50, 30)])
    with pytest.raises(OptionError, match="'tf'"):
        images(picture(30, 30), return_tensors="tf")


def test_options_of_a_call_leave_the_processor_alone() -> None:
    images = ImageProcessor(size=SMALL)
    assert images(picture(90, 60), size={"height": 7, "width": 9}).pixel_values.shape == (1, 1, 3, 7, 9)
    assert images(picture(90, 60), do_image_splitting=True).pixel_values.shape[1] == 5
    assert images == ImageProcessor(size=SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.do_pad = False  # type: ignore[misc]
    with pytest.raises(OptionError, match="do_image_splitting must be true or false, not 'no'"):
        images(picture(90, 60), do_image_splitting="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad", "do_image_splitting"])
@pytest.mark.parametrize("value", ["no", 1, [True]])
def test_what_is_true_or_false_is_nothing_else(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name} must be true or false, not "):
        ImageProcessor(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rescale_factor": value} for value in ("1", True, [1.0], -1, math.nan, math.inf)),
        *({"image_mean": value} for value in ("abc", ["0.5"] * 3, [0.5] * 2, [True] * 3, [math.nan] * 3, {"red": 0.5})),
        *({"image_std": value} for value in (0, [1, 1, 0], "123")),
    ],
    ids=str,
)
def test_numbers_are_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(wrong))} .*must be (a|three) number|rescale_factor must be a number"):
        ImageProcessor(**wrong)


def test_published_file_and_back() -> None:
    raw = {
        "do_convert_rgb": True, "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "Idefics2ImageProcessor",
        "image_std": [0.5, 0.5, 0.5], "processor_class": "Idefics2Processor", "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 980, "shortest_edge": 378},
    }  # fmt: skip
    images = ImageProcessor.from_dict(raw)
    assert images.do_image_splitting
    assert json.loads(json.dumps(images.to_dict())) == raw
    assert ImageProcessor.from_dict(images.to_dict()) == images
    assert ImageProcessor.from_dict({}) == ImageProcessor()
    later = {
        "data_format": "channels_first",
        "do_center_crop": None,
        "crop_size": None,
        "device": None,
        "new_knob": None,
        "newer": False,
    }
    assert ImageProcessor.from_dict({**raw, **later}) == images


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"max_image_size": {"longest_edge": 9}}, "max_image_size"), ({"do_center_crop": True}, "do_center_crop"),
        ({"data_format": "channels_last"}, "data_format"), ({"do_resize": "yes"}, "do_resize"), ({"resample": 77}, "resample"),
        ({"image_mean": [0.5]}, "image_mean"), ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_honoured(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageProcessor.from_dict(raw)
