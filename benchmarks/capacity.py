"""How many users a server holds: the same questions asked by more and more clients at once.

    python benchmarks/capacity.py                                     # the embedded model
    python benchmarks/capacity.py --model FOLDER --clients 1 4 16     # another, from few clients to many

Each client asks about a picture that nobody has shown before, reads the streamed answer, and asks again. Answers are kept
going to their full length, so that all rows of the table do the same work per answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import time
from dataclasses import dataclass, field
from itertools import count
from statistics import median

import httpx
import numpy as np
from PIL import Image

from load_test import served
from measure import Case, Side, report

QUESTION = "Describe the image."
PATTERN = "(.|\n){4000}"  # longer than any answer here


@dataclass
class Watch:
    """Seconds of every answer.

    Attributes:
        first: until its first token.
        between: from one token to the next.
        whole: until it was there.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class Crowd:
    """Clients of one server.

    Args:
        address: of the server.
        tokens: of each answer.
        side: longest edge of pictures in pixels.
    """

    def __init__(self, address: str, *, tokens: int, side: int) -> None:
        self.address = address
        self.tokens = tokens
        self.side = side
        self._numbers = count()

    async def ask(self, clients: int, answers: int) -> tuple[Watch, float]:
        """So many answers, to so many clients at once, and the seconds of it all."""
        watch = Watch()
        bodies = iter([self._body() for _ in range(answers)])
        json_body = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=self.address, timeout=600, headers=json_body) as client:

            async def one() -> None:
                for body in bodies:
                    await self._answer(client, body, watch)

            began = time.monotonic()
            await asyncio.gather(*(one() for _ in range(clients)))
            return watch, time.monotonic() - began

    async def _answer(self, client: httpx.AsyncClient, body: bytes, watch: Watch) -> None:
        began = last = time.monotonic()
        tokens = 0
        async with client.stream("POST", "/generate_stream", content=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                now = time.monotonic()
                (watch.between if tokens else watch.first).append(now - last)
                last, tokens = now, tokens + 1
        assert tokens == self.tokens, f"{tokens} tokens"
        watch.whole.append(last - began)

    def _body(self) -> bytes:
        noise = np.random.default_rng(next(self._numbers)).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        out = io.BytesIO()
        size = (self.side, self.side * 3 // 4)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        url = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
        prompt = f"User:![]({url}){QUESTION}<end_of_utterance>\nAssistant:"
        shape = {"max_new_tokens": self.tokens, "grammar": {"type": "regex", "value": PATTERN}}
        return json.dumps({"inputs": prompt, "parameters": shape}).encode()


def late(seconds: list[float], share: float = 0.95) -> float:
    """What this share of the seconds does not exceed."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder in the published layout; left out: the embedded model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--answers", type=int, default=128, help="for each number of clients")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--side", type=int, default=980, help="longest edge of the pictures in pixels")
    given = parser.parse_args()
    cases = []
    model = [given.model] if given.model else []
    with served(*model, "--dtype", given.dtype, "--max-requests", str(2 * max(given.clients))) as (address, _):
        crowd = Crowd(address, tokens=given.tokens, side=given.side)
        asyncio.run(crowd.ask(1, 4))
        for clients in given.clients:
            watch, seconds = asyncio.run(crowd.ask(clients, max(given.answers, clients)))
            answers = len(watch.whole)
            facts = {
                "clients": clients,
                "answers per second": answers / seconds,
                "tokens per second": answers * given.tokens / seconds,
                "first token": {"median": median(watch.first), "95 %": late(watch.first)},
                "between tokens": {"median": median(watch.between), "95 %": late(watch.between)},
            }
            cases.append(Case(name=f"{clients} clients", ours=Side.of(watch.whole), facts=facts))
            print(json.dumps(facts), flush=True)
    report("capacity", cases)


if __name__ == "__main__":
    main()
