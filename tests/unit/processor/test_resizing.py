"""A resize in strips is Pillow's resize."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from idefics.processor import resizing
from idefics.processor.image import ImageProcessor


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("resample", list(Image.Resampling), ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("sides", "size"),
    [((301, 187), (98, 61)), ((50, 40), (131, 77)), ((97, 33), (97, 12)), ((33, 97), (12, 97)), ((64, 48), (3, 2))],
    ids=str,
)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_strips_make_the_same_pixels(resample, sides, size, threads, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resizing, "ENOUGH", 1)
    image = noise(*sides)
    found = resizing.resized(image, size, resample, threads=threads)
    assert found.size == size
    assert np.array_equal(np.asarray(found), np.asarray(image.resize(size, resample)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
@pytest.mark.parametrize("threads", [0, 3])
def test_other_modes_are_left_to_pillow(mode: str, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resizing, "ENOUGH", 1)
    image = noise(61, 47).convert("RGBA" if mode == "RGBA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(noise(61, 47).convert("L"))
    found = resizing.resized(image, (20, 33), Image.Resampling.BILINEAR, threads=threads)
    assert found.mode == mode
    expected = image.resize((20, 33), Image.Resampling.BILINEAR)
    assert found.convert("RGBA").tobytes() == expected.convert("RGBA").tobytes()


def test_threads_that_images_leave_idle_share_them(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    plain = resizing.resized

    def watched(image, size, resample, *, threads):
        seen.append(threads)
        return plain(image, size, resample, threads=threads)

    monkeypatch.setattr("idefics.processor.image.resized", watched)
    images, large = ImageProcessor(), noise(1500, 1000)
    for count, workers, each in [(1, 1, 1), (1, 4, 4), (2, 5, 2), (3, 2, 1)]:
        seen.clear()
        images.levels([large] * count, workers=workers)
        assert seen == [each] * count
    seen.clear()
    images.levels([noise(400, 300)], workers=4)
    assert seen == [1], "too little work for two"
