"""What `idefics bench` measures: work that is done, in order, beside a limit that is a limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes import tiny_idefics
from idefics.bench import bench
from idefics.errors import OptionError
from idefics.machine.ceilings import Ceilings, ceilings

NAMES = (
    "prepare an image",
    "encode an image",
    "read 8 tokens",
    "write 3 tokens",
    "write 3 tokens, 2 answers",
    "first token of a first turn",
    "first token of a second turn",
    "2 requests with an image",
)
SMALL: dict[str, Any] = dict(image=(60, 40), prompt=8, tokens=3, together=2, rounds=2)


def test_every_kind_of_work_is_measured_in_order() -> None:
    told: list[tuple[str, int, int]] = []
    reached, done = bench(tiny_idefics(), **SMALL, progress=lambda *given: told.append(given))
    assert [work.name for work in done] == list(NAMES)
    assert [name for name, _, _ in told] == list(NAMES)
    assert reached.bytes_per_second > 1e8
    assert reached.operations_per_second.keys() == {"float32"}
    for work in done:
        assert 0 < work.least <= work.seconds <= work.most
        assert work.rate > 0
        assert work.limit is None or 0 < work.limit < work.seconds
    assert [work.unit for work in done] == ["images", "images", "tokens", "tokens", "tokens", "answers", "answers", "requests"]


def test_nothing_is_left_running_and_pictures_are_new_each_time() -> None:
    asked = tiny_idefics()
    bench(asked, **SMALL)
    assert not asked.engine.busy
    images = asked.engine.runner.eyes.images
    # A first turn, the two turns of a second, and two requests: three rounds each, the first to warm up.
    assert (images.misses, images.hits) == (3 * (1 + 1 + 2), 0)


@pytest.mark.parametrize("name", ["prompt", "tokens", "together", "rounds"])
def test_numbers_too_small_are_named(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} is too small"):
        bench(tiny_idefics(), **{**SMALL, name: 0})


def test_a_bound_is_the_longer_of_two() -> None:
    reached = Ceilings(bytes_per_second=10.0, operations_per_second={"bfloat16": 100.0})
    assert reached.bound(moved=20, operations=100) == 2.0
    assert reached.bound(moved=1, operations=300) == 3.0
    assert ceilings("cpu", [torch.bfloat16]).operations_per_second["bfloat16"] > 1e9
