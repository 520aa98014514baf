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
from idefics.errors import ImageError, OptionError
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.pool import ImagePool, in_parallel, usable_cpus


def slow_first(number: int) -> int:
    time.sleep(0.05 if number == 0 else 0.0)
    return number


def test_order_is_that_of_the_items_not_of_the_ends() -> None:
    assert in_parallel(slow_first, list(range(8)), workers=4) == list(range(8))
    with ImagePool(slow_first, workers=4) as pool:
        assert [future.result() for future in pool.in_order(range(20))] == list(range(20))


def test_threads_only_where_there_is_work_for_several() -> None:
    here = threading.current_thread()
    assert in_parallel(lambda _: threading.current_thread(), [1], workers=4) == [here]
    assert in_parallel(lambda _: threading.current_thread(), [1, 2], workers=1) == [here, here]
    assert here not in in_parallel(lambda _: threading.current_thread(), [1, 2], workers=2)
    assert in_parallel(slow_first, [], workers=3) == []
    assert usable_cpus() >= 1


def test_an_error_is_its_images_alone(processor: Idefics2Processor) -> None:
    images: list[Any] = [picture(40, 30), b"no image", picture(1, 9), picture(30, 40)]
    with ImagePool(processor.prepare, workers=2) as pool:
        futures = list(pool.in_order(images))
    with pytest.raises(ImageError, match="the image of 8 bytes is not an image"):
        futures[1].result()
    with pytest.raises(ImageError, match="1x9 pixels cannot be split"):
        futures[2].result()
    for index in (0, 3):
        alone = processor.prepare(images[index]).parts
        found = futures[index].result().parts
        assert all(torch.equal(a.levels_CHW, b.levels_CHW) for a, b in zip(found, alone, strict=True))
    with pytest.raises(ImageError, match="8 bytes"):
        in_parallel(processor.prepare, images, workers=2)


def test_no_more_is_taken_than_the_limit() -> None:
    taken: list[int] = []
    go_on = threading.Event()

    def source() -> Any:
        for number in range(9):
            taken.append(number)
            yield number

    def wait(number: int) -> int:
        assert go_on.wait(10)
        return number

    with ImagePool(wait, workers=2, limit=3) as pool:
        results: list[int] = []
        reader = threading.Thread(target=lambda: results.extend(f.result() for f in pool.in_order(source())))
        reader.start()
        time.sleep(0.1)
        assert len(taken) <= 4  # three unfinished, and the one that waits to be handed in
        go_on.set()
        reader.join(10)
        assert results == taken == list(range(9))


def test_submit_waits_for_room_and_cancelling_makes_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        begun.set()
        assert go_on.wait(10)

    with ImagePool(wait, workers=1, limit=2) as pool:
        pool.submit(1)
        assert begun.wait(10)
        waiting = pool.submit(2)
        third = threading.Thread(target=pool.submit, args=(3,))
        third.start()
        third.join(0.05)
        assert third.is_alive(), "a third image was taken although two were unfinished"
        assert waiting.cancel()
        third.join(10)
        assert not third.is_alive()
        go_on.set()


def test_a_closed_pool_and_unusable_options() -> None:
    pool = ImagePool(slow_first, workers=1, limit=1)
    pool.close()
    for _ in range(2):  # a refused image must not keep its place
        with pytest.raises(RuntimeError):
            pool.submit(1)
    for options in ({"workers": 0}, {"limit": 0}, {"workers": -1}):
        with pytest.raises(OptionError, match="at least one"):
            ImagePool(slow_first, **options)


def test_importing_starts_no_thread() -> None:
    program = "import threading, idefics.processor.pool, idefics.processor.image; print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"


def test_many_photos_at_once_are_what_they_are_alone(processor: Idefics2Processor) -> None:
    whole = processor.adjusted(split=False)
    photos = [picture(1100 + 7 * number, 900) for number in range(6)]
    with ImagePool(whole.prepare, workers=4) as pool:
        together = [future.result() for future in pool.in_order(photos)]
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
