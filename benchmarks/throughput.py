"""What serving costs: the same requests, 16 at once, asked of a server and of an engine without one.

    python benchmarks/throughput.py --threads 1  # the embedded model; so many CPU threads compute on both sides
    python benchmarks/throughput.py --layers 2 --rounds 1 --answers 32  # Idefics2-8B with so many layers, of true size

Two cases: answers of half to one and a half times `--tokens`, and, the hardest for a server, all of the same length: what
ends in one step is asked anew in the next, and all requests are prepared at once while the engine has nothing to do. The
client runs on the same machine and takes its share of it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.engine.engine import Engine
from idefics.engine.sampling_params import sampling_params
from idefics.linears.packing import finish_packing
from idefics.server.prepare.grammars import Grammar
from idefics.server.prepare.guides import Guides
from idefics.weights.create import create_checkpoint
from idefics.weights.files import EMBEDDED
from load_test import drawings, served
from measure import Case, Side, report
from same_weights import config

PROMPT = "User:<image>Describe the image.<end_of_utterance>\nAssistant:"
HEAD = b"POST /generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
SPREAD = 101
PATTERN = "(.|\n){4000}"  # longer than any answer here


class Work:
    """Requests for answers of known lengths, about eight pictures that are new in every round.

    Args:
        tokens: of each answer, or on average.
        mixed: lengths differ, in the same way on both sides.
        at_once: how many are open.
        seeds: of pictures; whoever has seen some must not be shown them again.
    """

    def __init__(self, *, tokens: int, mixed: bool, at_once: int, seeds: Iterator[int]) -> None:
        self.tokens = tokens
        self.mixed = mixed
        self.at_once = at_once
        self._seeds = seeds

    def length(self, number: int) -> int:
        """Tokens of one answer; those of `SPREAD` in a row have the right mean."""
        return self.tokens * (50 + 13 * number % SPREAD) // 100 if self.mixed else self.tokens

    def of_engine(self, model: Idefics, engine: Engine, answers: int) -> float:
        """Seconds that an engine takes; decoding the images is not its work."""
        guides = Guides(model.processor.tokenizer)
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in self._images()]
        left, open_now, began = answers, 0, time.monotonic()
        while left or open_now:
            while left and open_now < self.at_once:
                left -= 1
                open_now += 1
                params = sampling_params(model.defaults, {"max_new_tokens": self.length(answers - 1 - left)})
                inputs = model.processor.inputs([PROMPT], [[pictures[left % len(pictures)]]])
                guide = guides.of(Grammar("regex", PATTERN), answers=1, ends=params.eos_token_id)
                engine.add(inputs, params, guides=guide)
            open_now -= sum(event.finish is not None for event in engine.step())
        return time.monotonic() - began

    async def of_server(self, address: str, answers: int) -> float:
        """Seconds that a server takes; making requests is not its work, and the client does as little as it can."""
        images = [base64.b64encode(image).decode() for image in self._images()]
        bodies = []
        for number in range(answers):
            text = PROMPT.replace("<image>", f"![](data:image/png;base64,{images[number % len(images)]})")
            parameters = {"max_new_tokens": self.length(number), "grammar": {"type": "regex", "value": PATTERN}}
            bodies.append(json.dumps({"inputs": text, "parameters": parameters}).encode())
        left = iter(range(answers))
        began = time.monotonic()

        async def client() -> None:
            reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
            for number in left:
                writer.write(HEAD % len(bodies[number]) + bodies[number])
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                told = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                text = await reader.readexactly(int(told["content-length"]))
                assert told.get("x-generated-tokens") == str(self.length(number)), text
            writer.close()

        await asyncio.gather(*(client() for _ in range(self.at_once)))
        return time.monotonic() - began

    def _images(self) -> list[bytes]:
        return drawings(8, next(self._seeds))


def measured(folder: str, works: list[Work], *, answers: int, dtype: str, threads: int | None, rounds: int) -> list[Case]:
    """Both sides in turns, the order changing every round; a case per kind of work."""
    given = []
    if threads is not None:
        torch.set_num_threads(threads)
        given = ["--threads", str(threads)]
    model = idefics.load(folder, dtype=dtype, device="cpu")
    engine = Engine(finish_packing(model.model))
    cases = []
    with served("--model", folder, "--dtype", dtype, *given) as (address, _):
        for work in works:
            ways: list[Callable[[int], float]] = [
                partial(lambda work, many: asyncio.run(work.of_server(address, many)), work),
                partial(work.of_engine, model, engine),
            ]
            seconds: list[list[float]] = [[], []]
            for way in ways:
                way(work.at_once)
            for number in range(rounds):
                for index in (0, 1) if number % 2 else (1, 0):
                    seconds[index].append(ways[index](answers))
            cases.append(compared(work, *seconds, answers=answers, facts={"threads": threads, "dtype": dtype}))
    return cases


def compared(work: Work, its: list[float], alone: list[float], *, answers: int, facts: dict[str, Any]) -> Case:
    """Seconds of the server and of the engine alone."""
    tokens = sum(map(work.length, range(answers)))
    lengths = f"{work.length(0)} to {max(map(work.length, range(answers)))}" if work.mixed else str(work.tokens)
    return Case(
        name=f"{answers} answers of {lengths} tokens, {work.at_once} at once, server against engine alone",
        ours=Side.of(its),
        theirs=Side.of(alone),
        ratio=median(b / a for a, b in zip(its, alone, strict=True)),
        target=0.9,
        facts={"tokens per second": {"server": tokens / median(its), "engine": tokens / median(alone)}, **facts},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="instead of the embedded model: layers of tower and decoder")
    parser.add_argument("--dtype", help="float32 for the embedded model, bfloat16 for layers of true size if left out")
    parser.add_argument("--threads", type=int, help="as the server chooses them if left out; all for the engine")
    parser.add_argument("--answers", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    seeds = count()
    works = [Work(tokens=given.tokens, mixed=mixed, at_once=given.at_once, seeds=seeds) for mixed in (True, False)]
    with TemporaryDirectory() as scratch:
        folder, what, dtype = str(EMBEDDED), "throughput", given.dtype or "float32"
        if given.layers:
            made = config(vision_layers=given.layers, text_layers=given.layers)
            what, dtype = f"throughput-{given.layers}-layers", given.dtype or "bfloat16"
            folder = str(create_checkpoint(made, Path(scratch) / "wide", dtype=dtype))
        cases = measured(folder, works, answers=given.answers, dtype=dtype, threads=given.threads, rounds=given.rounds)
    if given.threads is not None:
        cases = [replace(case, name=f"{case.name}, {given.threads} thread(s)") for case in cases]
    report(what, cases, save=not given.no_save)


if __name__ == "__main__":
    main()
