from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from PIL import Image

from golden.make_processor_golden import picture
from idefics.errors import ImageError
from idefics.machine.cpus import in_parallel, usable_cpus
from idefics.processor.idefics2 import Idefics2Processor


def slow_first(number: int) -> int:
    time.sleep(0.05 if number == 0 else 0.0)
    return number


def test_order_is_that_of_the_items_not_of_the_ends() -> None:
    assert in_parallel(slow_first, list(range(8)), workers=4) == list(range(8))


def test_threads_only_where_there_is_work_for_several() -> None:
    here = threading.current_thread()
    assert in_parallel(lambda _: threading.current_thread(), [1], workers=4) == [here]
    assert in_parallel(lambda _: threading.current_thread(), [1, 2], workers=1) == [here, here]
    assert here not in in_parallel(lambda _: threading.current_thread(), [1, 2], workers=2)
    assert in_parallel(slow_first, [], workers=3) == []
    assert usable_cpus() >= 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_error_is_told(processor: Idefics2Processor, workers: int) -> None:
    images: list[Any] = [picture(40, 30), b"no image", picture(1, 9), picture(30, 40)]
    with pytest.raises(ImageError, match="the image of 8 bytes is not an image"):
        in_parallel(processor.prepare, images, workers=workers)


def test_importing_starts_no_thread() -> None:
    program = "import threading, idefics.machine.cpus, idefics.processor.image; print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"


def test_many_photos_at_once_are_what_they_are_alone(processor: Idefics2Processor) -> None:
    whole = processor.adjusted(split=False)
    photos = [picture(1100 + 7 * number, 900) for number in range(6)]
    together = in_parallel(whole.prepare, photos, workers=4)
    for found, one in zip(together, photos, strict=True):
        levels = whole.image_processor.levels([one], workers=1)[0]
        assert torch.equal(found.parts[0].levels_CHW, torch.from_numpy(levels))


def test_one_file_in_two_places_is_decoded_by_one_thread(
    processor: Idefics2Processor, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(300, 200).save(tmp_path / "a.png")
    lazy = Image.open(tmp_path / "a.png")
    opened: list[int] = []
    original = type(processor)._open_image

    def counting(self: Idefics2Processor, image: Any) -> Image.Image:
        opened.append(id(image))
        return original(self, image)

    monkeypatch.setattr(type(processor), "_open_image", counting)
    inputs = processor.inputs(["<image><image>"], [[lazy, lazy]])
    assert opened == [id(lazy)]
    assert inputs.images_per_row == (10,)
