from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from idefics.errors import ImageError
from idefics.processor.fetch import load_image
from idefics.processor.modes import array_to_image, to_rgb


def grey(image: Image.Image) -> list[int]:
    pixels = np.asarray(to_rgb(image, alpha="drop"))
    assert (pixels == pixels[..., :1]).all()
    return [int(v) for v in pixels[0, :, 0]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for mode in ("I;16", "I;16B"):
        image = Image.frombytes(mode, (4, 1), levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        assert grey(image) == [0, 1, 128, 255]
        # The reference clips: this is the deviation, and why.
        assert [int(v) for v in np.asarray(image.convert("RGB"))[0, :, 0]] == [0, 255, 255, 255]
    assert grey(Image.fromarray(levels.astype(np.int32))) == [0, 1, 128, 255]
    assert grey(Image.fromarray(levels.astype(np.float32))) == [0, 1, 128, 255]


def test_eight_bit_levels_in_wide_modes_are_as_the_reference_reads_them() -> None:
    levels = np.array([[0, 1, 128, 255]])
    for dtype in (np.int32, np.float32):
        image = Image.fromarray(levels.astype(dtype))
        assert grey(image) == [int(v) for v in np.asarray(image.convert("RGB"))[0, :, 0]] == [0, 1, 128, 255]


def test_unit_floats_are_scaled() -> None:
    assert grey(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))) == [0, 128, 255]


@pytest.mark.parametrize("values", [[-1.0, 3.0], [0.0, 1e6], [np.nan, 1.0], [np.inf, 0.0]])
def test_values_without_a_reading_are_refused(values: list[float]) -> None:
    with pytest.raises(ImageError, match="grey levels"):
        to_rgb(Image.fromarray(np.array([values], dtype=np.float32)), alpha="white")


def test_two_treatments_of_alpha() -> None:
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(image, alpha="drop").getpixel((0, 0)) == (10, 20, 30)
    assert to_rgb(image, alpha="white").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(image).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
)
@pytest.mark.parametrize("alpha", ["drop", "white"])
def test_every_mode_pillow_opens(mode: str, alpha: Any) -> None:
    assert to_rgb(Image.new(mode, (5, 3)), alpha=alpha).mode == "RGB"


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.zeros((5, 4), np.uint8), "L"), (np.zeros((5, 4, 1), np.uint8), "L"), (np.zeros((5, 4, 3), np.uint8), "RGB"),
        (np.zeros((3, 5, 4), np.uint8), "RGB"), (np.zeros((5, 4, 4), np.uint8), "RGBA"), (np.ones((5, 4), bool), "L"),
        (np.ones((5, 4, 3)), "RGB"), (np.full((5, 4, 3), 255), "RGB"), (np.zeros((3, 5, 3), np.uint8), "RGB"),
    ],
)  # fmt: skip
def test_arrays(array: Any, mode: str) -> None:
    image = array_to_image(array)
    assert image.mode == mode
    if array.max() > 0:
        assert np.asarray(image).max() == 255


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3), np.zeros((2, 5, 7)), np.zeros((1, 3, 5, 5)), np.zeros((0, 5, 3)), np.full((5, 5, 3), 1.5), np.array(3.0),
        np.full((5, 5), 256), np.full((5, 5), -1), np.full((5, 5), np.nan), np.zeros((5, 5), "U1"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_image(array: Any) -> None:
    with pytest.raises(ImageError):
        array_to_image(array)


def test_palettes_with_several_transparent_colours_are_quiet() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = b"\x00\xff"
    assert [to_rgb(image, alpha="drop").getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 255, 0)]
    assert [to_rgb(image, alpha="white").getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_quiet_restores_the_filters_however_threads_overlap() -> None:
    import threading
    import warnings

    from idefics.processor.quiet import quiet

    before, first_in, second_in = list(warnings.filters), threading.Event(), threading.Event()

    def second() -> None:
        first_in.wait(5)
        with quiet():
            second_in.set()
            warnings.warn("not shown", stacklevel=1)

    thread = threading.Thread(target=second)
    with quiet():
        thread.start()
        first_in.set()
        second_in.wait(5)
    thread.join(5)
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="shown"):
        warnings.warn("shown", stacklevel=1)
