"""Photos in memory to what the model takes, against the Pillow backend of transformers. Pixels are compared before timing.

    python benchmarks/preprocessing.py

Ours ends with bytes and a table of what they stand for, as a model of this package takes them; the last step to floats
happens inside the model, so one case adds it. Theirs ends with padded float32 pixels and their mask, as theirs takes them.
The limit is Pillow's resizing alone, spread evenly over the CPUs: both sides need it, and nothing that resizes with Pillow
can be faster. CPU seconds of both sides are among the facts: others who use the machine do not change them much.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from idefics.inputs import Levels, pixels_of
from idefics.machine.cpus import usable_cpus
from idefics.processor.fetch import upright_image
from idefics.processor.image import ImageProcessor
from idefics.processor.prepared import prepared
from idefics.processor.sizes import resized_size, sub_image_boxes
from measure import Case, compare, report

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

FIVE = ((1920, 1080), (960, 1280), (800, 600), (480, 640), (3000, 2000))
WITHIN = ((640, 480), (480, 640), (500, 375), (800, 600), (960, 720))
TWELVE_MEGAPIXELS = ((4032, 3024),)


def photo(width: int, height: int) -> Image.Image:
    """Something smooth with detail everywhere; how long a resize takes does not depend on what it shows."""
    noise = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def made_by_us(images: ImageProcessor, photos: Sequence[Image.Image]) -> list[Levels]:
    parts = len(images.processed_sizes(*photos[0].size))
    return [part for image in prepared([photos], upright_image, images, parts=parts)[0] for part in image.parts]


def assert_equal(images: ImageProcessor, ours: Sequence[Levels], theirs: Any) -> None:
    """Pixels within 1e-6, and the very levels."""
    mean, std = (torch.tensor(one)[:, None, None] for one in (images.image_mean, images.image_std))
    assert len(ours) == theirs["pixel_values"].shape[1]
    for one, padded_CHW, mask_HW in zip(ours, theirs["pixel_values"][0], theirs["pixel_attention_mask"][0], strict=True):
        _, height, width = one.shape
        assert int(mask_HW.sum()) == int(mask_HW[:height, :width].sum()) == height * width
        real_CHW = padded_CHW[:, :height, :width]
        assert float((pixels_of(one) - real_CHW).abs().max()) <= 1e-6
        assert torch.equal(one.levels_CHW, ((real_CHW * std + mean) * 255).round().to(torch.uint8))


def resizing(images: ImageProcessor, photos: Sequence[Image.Image]) -> float:
    """Seconds of Pillow's resizing alone, in one thread: the best of three."""
    work = []
    for one in photos:
        for box in sub_image_boxes(*one.size, do_image_splitting=images.do_image_splitting):
            part = one.crop(box)
            size = resized_size(*part.size, images.size)
            if size != part.size:
                work.append((part, size))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for part, size in work:
            part.resize(size, Image.Resampling(images.resample))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Of all threads together: the least of three runs."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def measured(
    name: str, sizes: Sequence[tuple[int, int]], *, split: bool = False, floats: bool = False, target: float | None = None
) -> Case:
    photos = [photo(*size) for size in sizes]
    images, reference = ImageProcessor(do_image_splitting=split), Idefics2ImageProcessorPil(do_image_splitting=split)
    assert_equal(images, made_by_us(images, photos), reference([photos], return_tensors="pt"))

    def ours() -> None:
        made = made_by_us(images, photos)
        if floats:
            for one in made:
                pixels_of(one)

    def theirs() -> None:
        reference([photos], return_tensors="pt")

    alone = resizing(images, photos)
    return compare(
        name,
        ours,
        theirs,
        rounds=9,
        limit=alone / usable_cpus() or None,
        target=target,
        sizes=[f"{width}x{height}" for width, height in sizes],
        cpus=usable_cpus(),
        resizing_in_one_thread=alone,
        cpu_seconds={"ours": cpu_seconds(ours), "theirs": cpu_seconds(theirs)},
    )


def main() -> None:
    cases = [
        measured("5 photos", FIVE, target=8.0),
        measured("5 photos, split in five each", FIVE, split=True, target=8.0),
        measured("5 photos, to float32", FIVE, floats=True),
        measured("5 photos of at most 980 pixels a side", WITHIN),
        measured("1 photo of 12 megapixels", TWELVE_MEGAPIXELS),
        measured("1 photo of 12 megapixels, split in five", TWELVE_MEGAPIXELS, split=True),
    ]
    report("preprocessing", cases)


if __name__ == "__main__":
    main()
