"""Images travel as bytes; what the model makes of them must be what float arithmetic on every pixel makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fakes
import gated
from golden.make_processor_golden import picture
from idefics.errors import ImageError, InputError
from idefics.inputs import Levels, ModelInputs, pixels_of
from idefics.processor.fetch import load_image, upright_image
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.image import ImageProcessor
from idefics.processor.prepared import PreparedImage
from idefics.processor.sizes import resized_size, sub_image_boxes
from idefics.processor.square_image import SquareImageProcessor

SMALL = {"shortest_edge": 28, "longest_edge": 56}
ODD = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.7, 0.9), "rescale_factor": 1 / 200}


def by_floats(images: ImageProcessor, photo: Image.Image) -> list[np.ndarray[Any, Any]]:
    """Split, resized and normalised one after the other, every step on whole arrays."""
    found = []
    for box in sub_image_boxes(*photo.size, do_image_splitting=images.do_image_splitting):
        part = photo.crop(box)
        if images.do_resize:
            part = part.resize(resized_size(*part.size, images.size), Image.Resampling(images.resample))
        pixels = np.asarray(part).astype(np.float64)
        pixels = (pixels * images.rescale_factor if images.do_rescale else pixels).astype(np.float32)
        if images.do_normalize:
            pixels = (pixels - np.array(images.image_mean, np.float32)) / np.array(images.image_std, np.float32)
        found.append(pixels.transpose(2, 0, 1))
    return found


@pytest.mark.parametrize(
    "options",
    [{}, ODD, {**ODD, "do_rescale": False}, {**ODD, "do_normalize": False}, {"do_resize": False}, {"resample": 3}],
    ids=str,
)
@pytest.mark.parametrize("split", [False, True])
def test_pixels_are_those_of_float_arithmetic_to_the_bit(options: dict[str, Any], split: bool) -> None:
    images = ImageProcessor(size=SMALL, do_image_splitting=split, **options)
    photo = picture(131, 77)
    values = torch.from_numpy(images.level_values)
    for levels, pixels, expected in zip(images.levels([photo]), images.pixels([photo]), by_floats(images, photo), strict=True):
        assert levels.dtype == np.uint8
        assert pixels.dtype == np.float32
        assert np.array_equal(pixels, expected)
        image = Levels(levels_CHW=torch.from_numpy(levels), values_CG=values)
        assert torch.equal(pixels_of(image), torch.from_numpy(pixels))
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(pixels_of(image, dtype), torch.from_numpy(pixels).to(dtype))


def test_every_level_of_every_channel_has_its_own_value() -> None:
    levels = torch.arange(3 * 256, dtype=torch.int32).view(3, 16, 16).to(torch.uint8)
    values = torch.arange(3 * 256.0).view(3, 256)
    image = Levels(levels_CHW=levels, values_CG=values)
    assert torch.equal(pixels_of(image), torch.arange(3 * 256.0).view(3, 16, 16))
    assert image.shape == (3, 16, 16)
    moved = ModelInputs(
        input_ids_BT=torch.ones(1, 1).long(),
        attention_mask_BT=torch.ones(1, 1).long(),
        images_CHW=(image,),
        images_per_row=(1,),
    ).to("cpu", torch.bfloat16)
    assert isinstance(moved.images_CHW[0], Levels)
    assert moved.images_CHW[0].levels_CHW.dtype == torch.uint8
    assert pixels_of(moved.images_CHW[0]).dtype == torch.bfloat16
    floats = torch.randn(3, 2, 2)
    assert pixels_of(floats) is floats


def test_large_images_in_several_threads_keep_their_order() -> None:
    photos = [picture(*size) for size in ((700, 500), (1500, 900), (90, 60), (901, 1203), (40, 40))]
    for split in (False, True):
        images = ImageProcessor(size=SMALL, do_image_splitting=split)
        together = images.levels(photos, workers=4)
        alone = [levels for photo in photos for levels in images.levels([photo], workers=1)]
        assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_no_pixel_beyond_the_cut_reaches_a_quarter() -> None:
    photo = Image.new("RGB", (200, 160))
    photo.paste("white", (0, 0, 100, 80))
    quarter = ImageProcessor(size=SMALL, do_image_splitting=True).levels([photo])[0]
    assert (quarter == 255).all()
    leaking = photo.resize((56, 44), Image.Resampling.BILINEAR, box=(0, 0, 100, 80))
    assert np.asarray(leaking).min() < 255, "a box alone would have done"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["idefics2", "idefics"])
def test_models_take_levels_as_they_take_pixels(family: str, dtype: torch.dtype) -> None:
    model, images = (
        (fakes.tiny_model(std=0.3, dtype=dtype), fakes.tiny_processor().image_processor)
        if family == "idefics2"
        else (gated.tiny_model(dtype=dtype), SquareImageProcessor(image_size=gated.SIDE))
    )
    values = torch.from_numpy(images.level_values)
    levels = [torch.from_numpy(one) for one in images.levels([picture(130, 70), picture(60, 90)])]
    bytewise = [Levels(levels_CHW=one, values_CG=values) for one in levels]
    floats = [pixels_of(image) for image in bytewise]
    inverted = [Levels(levels_CHW=255 - one, values_CG=values) for one in levels]
    with torch.inference_mode():
        for look in (model.encode_images, model.image_vectors):
            assert torch.equal(look(bytewise), look(floats))
            assert torch.equal(look([bytewise[0], floats[1]]), look(floats))
            assert not torch.equal(look(inverted), look(floats))


def test_prepared_images_are_taken_like_others(processor: Idefics2Processor) -> None:
    photos = [picture(60, 40), picture(90, 99)]
    ready = [processor.prepare(photo) for photo in photos]
    assert [len(image.parts) for image in ready] == [5, 5]
    plain = processor.inputs(["<image>a", "<image>"], [[photos[0]], [photos[1]]])
    mixed = processor.inputs(["<image>a", "<image>"], [[ready[0]], [photos[1]]])
    assert plain.images_per_row == mixed.images_per_row == (5, 5)
    for one, other in zip(plain.images_CHW, mixed.images_CHW, strict=True):
        assert torch.equal(pixels_of(one), pixels_of(other))
    with pytest.raises(InputError, match="prepared as 5 sub-image"):
        processor.adjusted(split=False).inputs(["<image>"], [[ready[0]]])
    with pytest.raises(ImageError, match="does not exist"):
        processor.prepare("nowhere.png")


def test_squares_are_prepared_too() -> None:
    images = SquareImageProcessor(image_size=28)
    levels = images.levels([picture(61, 47), picture(20, 90)])
    assert [one.shape for one in levels] == [(3, 28, 28)] * 2
    values = torch.from_numpy(images.level_values)
    made = torch.stack([pixels_of(Levels(levels_CHW=torch.from_numpy(one), values_CG=values)) for one in levels])
    assert torch.equal(made, images.preprocess([picture(61, 47), picture(20, 90)]))


def test_a_loaded_image_is_ones_own_and_reading_copies_nothing() -> None:
    photo = picture(40, 30)
    assert upright_image(photo) is photo
    loaded = load_image(photo)
    assert loaded is not photo
    loaded.paste("red", (0, 0, 40, 30))
    assert np.array_equal(np.asarray(photo), np.asarray(picture(40, 30)))
    photo.getexif()[0x0112] = 6
    assert upright_image(photo).size == (30, 40)
    assert np.array_equal(np.asarray(upright_image(photo)), np.asarray(photo.transpose(Image.Transpose.ROTATE_270)))
    for unknown in (0, 9, 1):
        photo.getexif()[0x0112] = unknown
        assert upright_image(photo).size == (40, 30)


def test_a_prepared_image_holds_levels(processor: Idefics2Processor) -> None:
    ready = processor.adjusted(split=False).prepare(picture(60, 40))
    assert isinstance(ready, PreparedImage)
    (image,) = ready.parts
    assert isinstance(image, Levels)
    assert image.levels_CHW.is_contiguous()
    assert image.values_CG.dtype == torch.float32
