"""What an image of a stranger's may cost: a time and a memory, in a process that ends with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import held_decoder
import pool_work
from fake_engine import FakeEngine
from fakes import tiny_processor
from idefics.errors import ImageError
from idefics.server.images import decoders as decoders_module
from idefics.server.images.decoders import Decoders, Decoding
from idefics.server.limits import ServerLimits
from serving import data_url, fake_app, png, script


@contextmanager
def decoders(made: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Iterator[Decoders]:
    with monkeypatch.context() as patch:
        patch.setattr(decoders_module, "_made", made)
        found = Decoders(ServerLimits(workers=1, **limits))
    try:
        yield found
    finally:
        found.close()


def of_request(found: Decoders, **limits: Any) -> Decoding:
    return found.of_request(tiny_processor().image_processor, ServerLimits(**limits))


def test_a_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(held_decoder.UNTIL, str(tmp_path / "go"))

    async def go(found: Decoders) -> None:
        with pytest.raises(ImageError, match=r"image 1 of 2 took over 0\.2 s to decode; make it smaller"):
            await of_request(found, decode_seconds=0.2).image(png(), "image 1 of 2")
        (tmp_path / "go").touch()
        decoding = of_request(found)
        image, size = await decoding.image(data_url(png()), "image 1 of 3")
        assert (len(image.parts), size) == (1, len(png()))
        (tmp_path / "go").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_seconds", 0.1)
            with pytest.raises(ImageError, match="the images of this request took over 30 s together"):
                await decoding.image(png(), "image 2 of 3")

    with decoders(held_decoder.made, monkeypatch) as found:
        asyncio.run(go(found))


def test_pixels_are_counted_over_all_images_of_a_request() -> None:
    async def go() -> None:
        decoding = of_request(found, request_pixels=2_000)
        await decoding.image(png(40, 30), "image 1 of 2")
        with pytest.raises(ImageError, match="have over 2000 pixels together"):
            await decoding.image(png(40, 30), "image 2 of 2")

    found = Decoders(ServerLimits(workers=1))
    asyncio.run(go())
    found.close()


def test_a_memory_is_full() -> None:
    killed: list[str] = []

    async def go() -> None:
        decoding = found.of_request(tiny_processor().image_processor, limits)
        with pytest.raises(ImageError, match=r"image 1 of 2 took more than 16777216 bytes of memory to decode"):
            await decoding.image(png(3_000, 2_500), "image 1 of 2")
        assert (await decoding.image(png(), "image 2 of 2"))[1] == len(png())

    limits = ServerLimits(workers=1, decode_memory=2**24)
    found = Decoders(limits, killed.append)
    asyncio.run(go())
    found.close()
    assert killed == ["memory"]


def test_processes_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        decoders(pool_work.broken, monkeypatch) as found,
        TestClient(fake_app(FakeEngine(script()), decoders=found)) as client,
    ):
        for _ in range(3):
            assert client.get("/health").status_code == 200
            answer = client.post("/generate", json={"inputs": f"![]({data_url(png())})a"})
            assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
        assert client.get("/health").status_code == 503
        assert "idefics_preparing_healthy 0.0" in client.get("/metrics").text
        assert client.post("/generate", json={"inputs": "a"}).status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_both_apis_tell_the_bound(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(held_decoder.UNTIL, str(tmp_path / "go"))
    limits = ServerLimits(workers=1, decode_seconds=0.2)
    monkeypatch.setattr(decoders_module, "_made", held_decoder.made)
    with TestClient(fake_app(FakeEngine(script()), limits=limits, decoders=None)) as client:
        began = time.monotonic()
        text = f"![]({data_url(png())})a"
        answer = client.post(path, json={"inputs": text} if path == "/generate" else {"prompt": text})
        assert answer.status_code == (422 if path == "/generate" else 400)
        assert "took over 0.2 s to decode" in answer.text
        assert time.monotonic() - began < 20
        assert 'idefics_decoders_killed_total{reason="time"} 1.0' in client.get("/metrics").text
