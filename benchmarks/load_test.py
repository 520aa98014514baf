"""A server under load: mixed requests, clients that leave or read slowly, images that are none.

    python benchmarks/load_test.py                              # 2,000 requests, 64 at once
    python benchmarks/load_test.py --requests 100 --at-once 16  # shorter

Every accepted request must be answered as the model answers alone, and afterwards nothing of the requests may be left: no
open request, no held block, no growth of the process between the middle and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.server
import io
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.assets import DEMO
from measure import Case, Side, report

QUESTIONS = (
    "What is this?",
    "What color is it?",
    "How many objects are there?",
    "Describe the image.",
    "Read the number.",
    "What shape is it?",
)
NEW_TOKENS = 40


@dataclass(frozen=True)
class Question:
    """A question with its images and the model's answer to it."""

    text: str
    images: tuple[int, ...]
    answer: str

    def prompt(self, urls: list[str]) -> str:
        return f"User:{''.join(f'![]({urls[i]})' for i in self.images)}{self.text}<end_of_utterance>\nAssistant:"


@dataclass
class Tally:
    """What came of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


def drawings(count: int, seed: int) -> list[bytes]:
    """Encoded images: the demo's, cut and scaled at random."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        image = Image.open(DEMO / f"{chance.choice(('thing', 'things', 'number', 'left', 'right'))}.png").convert("RGB")
        image = image.resize((chance.randint(40, 400), chance.randint(40, 400)))
        out = io.BytesIO()
        image.save(out, chance.choice(("PNG", "JPEG", "WEBP")))
        made.append(out.getvalue())
    return made


def questions(model: Idefics, images: list[bytes], count: int, seed: int) -> list[Question]:
    """Questions about none, one or two of the images, each asked of the model alone."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        shown = tuple(chance.sample(range(len(images)), chance.choice((0, 1, 1, 1, 2))))
        text = chance.choice(QUESTIONS)
        prompt = f"User:{'<image>' * len(shown)}{text}<end_of_utterance>\nAssistant:"
        pictures = [Image.open(io.BytesIO(images[i])) for i in shown]
        made.append(Question(text, shown, model.generate(prompt, pictures, raw=True, max_new_tokens=NEW_TOKENS)))
    return made


@contextmanager
def host(images: list[bytes]) -> Iterator[str]:
    """Serves the images at `/0`, `/1`, ...; nothing else is there, and `/slow` never ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path[1:]
            if name == "slow":
                time.sleep(30)
            found = images[int(name)] if name.isdecimal() else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the server has had enough, or its client has left
                self.wfile.write(found)

        def log_message(self, *arguments: Any) -> None:
            del arguments

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Load:
    """Sends requests of all kinds; `/generate` keeps the space that follows the prompt, chats begin with the word.

    Args:
        address: of the server.
        asked: what to ask.
        data: the images as data URLs.
        links: the images as http URLs.
        links_to: where they are served.
        seed: of the mixture.
    """

    def __init__(
        self, address: str, asked: list[Question], data: list[str], links: list[str], links_to: str, seed: int
    ) -> None:
        self.address = address
        self.asked = asked
        self.data = data
        self.links = links
        self.bad = [
            "data:image/png;base64,AAAA",
            f"{links_to}/missing",
            "file:///etc/passwd",
            "http://127.0.0.1:1/x",
            f"{data[0][:200]}",
        ]
        self.chance = random.Random(seed)
        self.tally = Tally()

    async def run(self, requests: int, at_once: int) -> float:
        """Sends so many, keeping so many open, and returns the seconds."""
        kinds: dict[Callable[..., Awaitable[None]], int] = {
            self.whole: 8, self.streamed: 6, self.chat: 5, self.chat_streamed: 4, self.slow: 1, self.left: 2, self.bad_image: 2,
            self.invalid: 1,
        }  # fmt: skip
        chosen = self.chance.choices(list(kinds), list(kinds.values()), k=requests)
        gate = asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=self.address, limits=limits, timeout=300) as client:

            async def one(kind: Callable[..., Awaitable[None]]) -> None:
                question = self.chance.choice(self.asked)
                urls = self.chance.choice((self.data, self.links))
                async with gate:
                    begun = time.monotonic()
                    await kind(client, question, urls)
                    self.tally.seconds.append(time.monotonic() - begun)

            await asyncio.gather(*(one(kind) for kind in chosen))
        return time.monotonic() - began

    async def whole(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        body = {"inputs": question.prompt(urls), "parameters": {"max_new_tokens": NEW_TOKENS}}
        response = await client.post("/generate", json=body)
        self._check("whole", question, f" {question.answer}", response.json().get("generated_text"), response.text)

    async def streamed(self, client: httpx.AsyncClient, question: Question, urls: list[str], pause: float = 0.0) -> None:
        body = {"inputs": question.prompt(urls), "parameters": {"max_new_tokens": NEW_TOKENS}}
        begun, last, pieces = time.monotonic(), {}, ""
        async with client.stream("POST", "/generate_stream", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    if not last:
                        self.tally.first.append(time.monotonic() - begun)
                    last = json.loads(line[5:])
                    token = last.get("token", {"special": True})
                    pieces += "" if token["special"] else token["text"]
                    await asyncio.sleep(pause)
        same = pieces == last.get("generated_text")
        self._check("slow" if pause else "streamed", question, f" {question.answer}", pieces if same else None, str(last))

    async def slow(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        await self.streamed(client, question, urls, pause=0.05)

    def _messages(self, question: Question, urls: list[str]) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": urls[i]}} for i in question.images]
        # Raw prompts have no space where a question has no image, so that both ways ask the same.
        text = {"type": "text", "text": question.text}
        return {"messages": [{"role": "user", "content": [*parts, text]}], "temperature": 0, "max_tokens": NEW_TOKENS}

    async def chat(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        if not question.images:
            return await self.whole(client, question, urls)
        response = await client.post("/v1/chat/completions", json=self._messages(question, urls))
        found = response.json()
        text = found["choices"][0]["message"]["content"] if "choices" in found else None
        self._check("chat", question, question.answer, text, response.text)
        return None

    async def chat_streamed(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        if not question.images:
            return await self.streamed(client, question, urls)
        text, done = "", False
        body = {**self._messages(question, urls), "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data:"):
                    text += json.loads(line[5:])["choices"][0]["delta"].get("content") or ""
        self._check("chat streamed", question, question.answer, text if done else None, text)
        return None

    async def left(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        body = {"inputs": question.prompt(urls), "parameters": {"max_new_tokens": 200, "do_sample": True, "temperature": 3.0}}
        async with client.stream("POST", "/generate_stream", json=body) as response:
            async for _ in response.aiter_lines():
                break
        self.tally.outcomes["left"] += 1

    async def bad_image(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        body = {"inputs": f"User:![]({self.chance.choice(self.bad)}){question.prompt(urls)}"}
        await self._refused("bad image", client, body)

    async def invalid(self, client: httpx.AsyncClient, question: Question, urls: list[str]) -> None:
        body = {"inputs": question.prompt(urls), "parameters": {"max_new_tokens": 10**6}}
        await self._refused("invalid", client, body)

    async def _refused(self, kind: str, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        response = await client.post("/generate", json=body)
        self.tally.outcomes[kind] += 1
        if response.status_code != 422:
            self.tally.wrong.append(f"{kind}: {response.status_code} {response.text[:200]}")

    def _check(self, kind: str, question: Question, right: str, text: str | None, told: str) -> None:
        self.tally.outcomes[kind] += 1
        if text != right:
            self.tally.wrong.append(f"{kind}: {question.text!r}: {text!r} instead of {right!r}: {told[:200]}")


def left_over(address: str) -> dict[str, float]:
    """What a server still holds when nobody asks anything, once it has had a moment."""
    names = ("idefics_open_requests", "idefics_kv_cache_blocks_held", "tgi_queue_size", "tgi_batch_current_size")
    for _ in range(200):
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        found = {name: float(line.split()[1]) for line in lines for name in names if line.startswith(f"{name} ")}
        if not any(found.values()):
            break
        time.sleep(0.05)
    return found


def loaded(
    address: str, model: Idefics, *, requests: int, at_once: int, seed: int = 0, rounds: int = 1
) -> tuple[Load, list[float]]:
    """Puts a server under load, whose model answers as `model` does; seconds of each round."""
    images = drawings(24, seed)
    asked = questions(model, images, 40, seed + 1)
    data = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    with host(images) as at:
        load = Load(address, asked, data, [f"{at}/{i}" for i in range(len(images))], at, seed + 2)
        seconds = [asyncio.run(load.run(requests // rounds, at_once)) for _ in range(rounds)]
    return load, seconds


@contextmanager
def served(*options: str) -> Iterator[tuple[str, int]]:
    """A server of the embedded model in a process of its own: its address and process id."""
    command = [
        sys.executable,
        "-m",
        "idefics",
        "serve",
        *options,
        "--port",
        "0",
        "--allow-private-images",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = next(json.loads(line)["address"] for line in process.stderr if '"address"' in line)
    threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
    while True:
        try:
            httpx.get(f"{address}/health").raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(0.1)
    try:
        yield address, process.pid
    finally:
        process.terminate()
        assert process.wait(60) == 0, "the server did not stop in order"


def resident(pid: int) -> int:
    """Bytes of memory of a process and of those that it has started."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return own + sum(map(resident, map(int, started)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--at-once", type=int, default=64)
    options = parser.parse_args()
    model = idefics.load(dtype="float32")
    cases = []
    with served("--dtype", "float32", "--max-requests", str(2 * options.at_once)) as (address, pid):
        warm, _ = loaded(address, model, requests=options.at_once, at_once=options.at_once, seed=100)
        memory = [resident(pid)]
        wrong = list(warm.tally.wrong)
        began = time.monotonic()
        for part in range(2):
            load, _ = loaded(address, model, requests=options.requests // 2, at_once=options.at_once, seed=part)
            memory.append(resident(pid))
            wrong += load.tally.wrong
            side = Side.of(load.tally.seconds)
            facts = {
                "outcomes": dict(load.tally.outcomes), "wrong": len(load.tally.wrong),
                "seconds to the first token, median": statistics.median(load.tally.first),
                "resident bytes": memory[-1],
            }  # fmt: skip
            cases.append(
                Case(
                    name=f"{options.requests // 2} requests, {options.at_once} at once, part {part + 1}", ours=side, facts=facts
                )
            )
        left = left_over(address)
        whole = time.monotonic() - began
    cases.append(
        Case(name="all", ours=Side.of([whole]), facts={"left over": left, "resident bytes": memory, "wrong": len(wrong)})
    )
    report("load", cases)
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    if wrong or any(left.values()):
        raise SystemExit(f"{len(wrong)} wrong, left over: {left}")


if __name__ == "__main__":
    main()
