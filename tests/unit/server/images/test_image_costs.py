"""Images cost the request that sent them, and no other: threads, connections, memory and the event loop are shared out."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import held_decoder
from fake_engine import FakeEngine
from fakes import generation_defaults, tiny_idefics, tiny_processor
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.errors import ImageError
from idefics.processor.prepared import PreparedImage
from idefics.server.errors import Invalid, Overloaded
from idefics.server.images import decoders as decoders_module
from idefics.server.images.addresses import AddressRule
from idefics.server.images.budget import PixelBudget
from idefics.server.images.decoders import Decoders, Decoding
from idefics.server.images.source import ImageSource
from idefics.server.limits import ServerLimits
from idefics.server.prepare.compilers import Compilers
from idefics.server.prepare.prompts import Prompt
from idefics.server.prepare.requests import Asked, Preparer
from serving import data_url, fake_app, image_host, png, script, serving, shared_decoders, wait_until


@asynccontextmanager
async def source(**limits: Any) -> AsyncIterator[ImageSource]:
    images = ImageSource(ServerLimits(**limits), AddressRule(private=True))
    try:
        yield images
    finally:
        await images.close()


@asynccontextmanager
async def preparer(decoders: Decoders | None = None, **limits: Any) -> AsyncIterator[Preparer]:
    processor, bounds = tiny_processor(), ServerLimits(**limits)
    async with source(**limits) as images:
        made = Preparer(
            processor,
            generation_defaults(processor),
            positions=512,
            longest_image=72,
            limits=bounds,
            images=images,
            decoders=decoders or shared_decoders(),
            compilers=Compilers(processor.tokenizer, (2,), bounds),
        )
        try:
            yield made
        finally:
            made.close()


def asked(*references: str, **fields: Any) -> Asked:
    options = {"max_new_tokens": 5, **fields.pop("options", {})}
    return Asked(prompt=Prompt("<image>" * len(references) + "a", references), options=options, **fields)


async def nothing(images: ImageSource, *urls: str) -> None:
    async with images.fetched(urls):
        pass


@contextmanager
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names that begin with "slow" are looked up without an end; yields those that are. Others are this machine."""
    real, end, running = socket.getaddrinfo, threading.Event(), []

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name.startswith("slow"):
            running.append(name)
            end.wait(60)
            raise socket.gaierror("no such name")
        return real("127.0.0.1" if name.endswith(".test") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield running
    finally:
        end.set()


async def beats(work: Coroutine[Any, Any, Any]) -> float:
    """The longest that the event loop was held up while something ran in it, in seconds of this process's own time."""
    longest, last = 0.0, time.process_time()
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.process_time() - last), time.process_time()
    task.result()
    return longest


def test_slow_names_keep_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(port: str) -> None:
        async with source(image_seconds=20) as images:
            slow = [
                asyncio.ensure_future(nothing(images, *(f"http://slow{request}-{i}.test/" for i in range(8))))
                for request in range(8)
            ]
            while len(running) < 16:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert len(running) == 16, "two of each request"
            await asyncio.wait_for(nothing(images, f"http://healthy.test:{port}/a.png"), 10)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            # Who is gone leaves the lookups that had begun, and to these the same names add none.
            await asyncio.wait_for(nothing(images, f"http://healthy.test:{port}/a.png"), 10)
            again = [asyncio.ensure_future(nothing(images, "http://slow0-0.test/")) for _ in range(20)]
            await asyncio.sleep(0.2)
            assert len(running) == 16
            for task in again:
                task.cancel()
            await asyncio.gather(*again, return_exceptions=True)

    with slow_names(monkeypatch) as running, image_host({"/a.png": (200, {}, png())}) as address:
        asyncio.run(run(address.rpartition(":")[2]))


def test_a_host_is_looked_up_once_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        names.append(host)
        return real("127.0.0.1", *arguments, **options)

    async def run(port: str) -> None:
        async with source() as images:
            await nothing(images, *(f"http://one.test:{port}/{i}" for i in range(9)))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with image_host({f"/{i}": (200, {}, png()) for i in range(9)}) as address:
        asyncio.run(run(address.rpartition(":")[2]))
    assert names.count("one.test") == 1


def test_dripping_hosts_keep_nobody_else_waiting() -> None:
    async def run(address: str) -> None:
        async with source(image_seconds=60) as images:
            slow = [
                asyncio.ensure_future(nothing(images, *(f"{address}/slow?{request}-{i}" for i in range(8))))
                for request in range(9)
            ]
            await asyncio.sleep(1)
            await asyncio.wait_for(nothing(images, f"{address}/a.png"), 10)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

    replies: dict[str, Any] = {f"/slow?{request}-{i}": 20.0 for request in range(9) for i in range(8)}
    with image_host({**replies, "/a.png": (200, {}, png())}) as address:
        asyncio.run(run(address))


def test_fetched_bytes_are_bounded_per_request_and_in_all() -> None:
    class Counting(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            hits.append(key)
            return super().get(key, default)

    async def run(address: str) -> None:
        urls = [f"{address}/{i}" for i in range(4)]
        async with source(request_image_bytes=3_500, held_image_bytes=6_500) as images:
            with pytest.raises(ImageError, match="over the limit of 3500 bytes together"):
                await nothing(images, *urls)
            async with images.fetched([*urls[:3], *urls[:3]]) as found, images.fetched(urls[:3]):
                assert {url: len(data) for url, data in found.items()} == dict.fromkeys(urls[:3], 1_000)
                with pytest.raises(Overloaded):
                    await nothing(images, urls[0])
            hits.clear()
            for _ in range(9):  # what was held is held no more, refused or not
                await nothing(images, *urls[:3], *urls[:3])
            assert len(hits) == 27, "equal references are fetched once"

    hits: list[str] = []
    with image_host(Counting({f"/{i}": (200, {}, b"x" * 1_000) for i in range(4)})) as address:
        asyncio.run(run(address))


@pytest.mark.parametrize("payload", ["A" * 26_000_000, "%" * 2_600_000, "%41" * 2_600_000, "%2B" * 2_600_000, " " * 26_000_000])
def test_data_urls_do_not_hold_up_the_event_loop(payload: str) -> None:
    async def run() -> None:
        async with preparer(workers=1) as made:

            async def refused() -> None:
                with pytest.raises(ImageError):
                    await made.prepare(large)

            assert await beats(refused()) < 0.1

    large, began = asked(f"data:image/png;base64,{payload}"), time.process_time()
    asyncio.run(run())
    assert time.process_time() - began < 5


def test_equal_references_are_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = Decoding.image
    monkeypatch.setattr(Decoding, "image", lambda self, encoded, where: made.append(where) or real(self, encoded, where))

    async def run() -> None:
        async with preparer() as ready:
            prepared = await ready.prepare(asked(data_url(png()), data_url(png(20, 20)), data_url(png())))
            first, _, third = prepared.inputs.images_CHW
            assert first is third
            assert prepared.image_bytes == len(png()) + len(png(20, 20))

    asyncio.run(run())
    assert made == ["image 1 of 3", "image 2 of 3"]


def test_what_cannot_fit_is_refused_before_an_image_is_fetched() -> None:
    async def run() -> None:
        nowhere = "http://127.0.0.1:1/a.png"
        async with preparer() as made:
            with pytest.raises(ImageError, match="could not be fetched"):
                await made.prepare(asked(nowhere))
            with pytest.raises(Invalid, match="`max_new_tokens` must be <= 512"):
                await made.prepare(asked(nowhere, options={"max_new_tokens": 512}))
            with pytest.raises(Invalid, match="`inputs` must have less than 512 tokens"):
                await made.prepare(asked(*[nowhere] * 64, split=True))
            with pytest.raises(Invalid, match="truncate = 2 would cut an image"):
                await made.prepare(asked(nowhere, truncate=2))
            with pytest.raises(ImageError, match="10000 images in one request are over the limit of 64"):
                await made.prepare(asked(*[nowhere] * 10_000))

    asyncio.run(run())


def test_the_engine_finds_digests_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with preparer() as made:
            prepared = await made.prepare(asked(data_url(png()), split=True))
        monkeypatch.setattr("idefics.inputs.blake2b", lambda **_: pytest.fail("pixels are hashed in the engine's thread"))
        engine = Engine(tiny_idefics().model, Limits(cache_bytes=2**20))
        engine.add(prepared.inputs, prepared.params)
        engine.step()

    asyncio.run(run())


class Payload:
    """What a request's work holds."""


def test_who_leaves_leaves_nothing_with_the_workers() -> None:
    async def run() -> None:
        async with preparer(workers=2) as made:
            end = threading.Event()
            blocking = [asyncio.ensure_future(made.in_worker(lambda: end.wait(60))) for _ in range(2)]
            held = []
            for _ in range(50):
                payload = Payload()
                held.append(weakref.ref(payload))
                task = asyncio.ensure_future(made.in_worker(lambda payload=payload: payload))
                del payload
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del task
            gc.collect()
            assert sum(each() is not None for each in held) <= 1, "the event loop itself may hold the last one"
            # Work that is abandoned while it runs keeps its worker until it is done.
            for task in blocking:
                task.cancel()
            next_one = asyncio.ensure_future(made.in_worker(lambda: "done"))
            await asyncio.sleep(0.05)
            assert not next_one.done()
            end.set()
            assert await asyncio.wait_for(next_one, 10) == "done"

    asyncio.run(run())


@contextmanager
def held_decoders(until: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Iterator[Decoders]:
    """Processes that decode once the file exists; beside it they leave a file for every image that they begin with."""
    monkeypatch.setenv(held_decoder.UNTIL, str(until))
    with monkeypatch.context() as patch:
        patch.setattr(decoders_module, "_made", held_decoder.made)
        made = Decoders(ServerLimits(**limits))
    try:
        yield made
    finally:
        made.close()


def test_images_of_who_has_left_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(decoders: Decoders) -> None:
        async with preparer(decoders, workers=1) as ready:
            task = asyncio.ensure_future(ready.prepare(asked(*(data_url(png(20 + i, 20)) for i in range(5)))))
            await asyncio.to_thread(wait_until, (tmp_path / "image 1 of 5").exists)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            began = time.monotonic()
            (tmp_path / "image 1 of 1").unlink(missing_ok=True)
            other = asyncio.ensure_future(ready.prepare(asked(data_url(png()))))
            await asyncio.to_thread(wait_until, (tmp_path / "image 1 of 1").exists)
            assert time.monotonic() - began < 5, "whom nobody waits for holds a process"
            (tmp_path / "go").touch()
            assert (await other).prompt_tokens

    with held_decoders(tmp_path / "go", monkeypatch, workers=1) as decoders:
        asyncio.run(run(decoders))
    assert not (tmp_path / "image 2 of 5").exists()


def test_prepared_images_are_bounded_until_nobody_holds_them() -> None:
    processor = tiny_processor()
    first, second = (processor.prepare(png(40 + i, 40)) for i in range(2))
    size = sum(part.levels_CHW.nbytes for part in first.parts)
    budget = PixelBudget(size + size // 2)
    budget.take(first)
    with pytest.raises(Overloaded):
        budget.take(second)
    kept: PreparedImage | tuple[Any, ...] = first.parts  # as the engine keeps them
    del first
    with pytest.raises(Overloaded):
        budget.take(second)
    del kept
    gc.collect()
    budget.take(second)

    async def run() -> None:
        async with preparer(held_pixel_bytes=100) as made:
            with pytest.raises(Overloaded):
                await made.prepare(asked(data_url(png())))

    asyncio.run(run())


def test_a_queue_of_photos_does_not_hold_up_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []

    def show(number: int) -> None:
        body = {"inputs": f"![]({data_url(png(20 + number, 20))})a"}
        statuses.append(httpx.post(f"{address}/generate", json=body, timeout=60).status_code)

    engine = FakeEngine(script("the red image " * 40), step_seconds=0.005)
    body = {"inputs": "a", "parameters": {"max_new_tokens": 400, "details": True}}
    with held_decoders(tmp_path / "go", monkeypatch) as decoders:
        app = fake_app(engine, limits=ServerLimits(workers=2), decoders=decoders)
        with serving(app) as address, httpx.stream("POST", f"{address}/generate_stream", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            photos = [threading.Thread(target=show, args=(number,)) for number in range(5)]
            for thread in photos:
                thread.start()
            wait_until(lambda: app.state.service.open >= 5)
            assert '"finish_reason"' in [line for line in lines if line][-1]
            assert httpx.post(f"{address}/tokenize", json={"inputs": "a" * 3_000}, timeout=60).status_code == 200
            assert not statuses
            (tmp_path / "go").touch()
            for thread in photos:
                thread.join(60)
            assert statuses == [200] * 5
