"""Encoded images: which are kept, which make way, and what that costs."""

from __future__ import annotations

import random

import pytest
import torch

from idefics.engine.image_cache import Encoded, ImageCache


def image(floats: int) -> Encoded:
    """Two parts of so many bytes together as four times `floats`."""
    return torch.zeros(1, floats - 1), torch.zeros(1, 1)


def kept(cache: ImageCache) -> str:
    """Names of what is kept, the one to make way first at the front."""
    return "".join(digest.decode() for digest in cache._images)


def test_those_unused_for_longest_make_way() -> None:
    cache = ImageCache(4 * 30)
    for name in (b"a", b"b", b"c"):
        cache.put(name, image(10))
    assert kept(cache) == "abc"
    assert cache.bytes == cache.limit
    assert cache.get(b"a") is not None
    cache.put(b"d", image(10))
    assert kept(cache) == "cad"
    cache.put(b"e", image(25))
    assert kept(cache) == "e"
    assert cache.bytes == 4 * 25


def test_what_is_larger_than_all_room_is_not_kept_and_nothing_makes_way_for_it() -> None:
    cache = ImageCache(4 * 30)
    cache.put(b"a", image(10))
    cache.put(b"b", image(31))
    assert kept(cache) == "a"
    cache.put(b"c", image(30))
    assert kept(cache) == "c"


def test_an_image_counts_once_however_often_it_is_put() -> None:
    cache = ImageCache(4 * 30)
    first = image(10)
    for made in (first, image(10)):
        cache.put(b"a", made)
    assert cache.bytes == 4 * 10
    assert cache.get(b"a") is first


def test_no_room_keeps_nothing() -> None:
    cache = ImageCache(0)
    cache.put(b"a", image(2))
    assert cache.get(b"a") is None
    assert (cache.bytes, cache.hits, cache.misses) == (0, 0, 1)


def test_hits_and_misses() -> None:
    cache = ImageCache(4 * 10)
    for name in (b"a", b"a", b"b", b"a"):
        if cache.get(name) is None:
            cache.put(name, image(10))
    assert (cache.hits, cache.misses) == (1, 3)


@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_those_of_what_is_kept_and_within_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    cache = ImageCache(4 * 50)
    sizes = {bytes([name]): rng.randint(2, 60) for name in range(97, 123)}
    for _ in range(500):
        name = rng.choice(list(sizes))
        found = cache.get(name)
        if found is None:
            cache.put(name, image(sizes[name]))
        assert cache.bytes == sum(4 * sizes[digest] for digest in cache._images) <= cache.limit
