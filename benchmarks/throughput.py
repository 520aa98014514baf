"""What serving costs: the same requests, 16 at once, asked of a server and of an engine without one.

    python benchmarks/throughput.py                        # the embedded model
    python benchmarks/throughput.py --layers 2 --rounds 1  # Idefics2-8B with so many layers of tower and decoder, of true size
    python benchmarks/throughput.py --threads 1            # CPU threads that compute, on both sides

The client runs on the same machine and takes its share of it. Answers are kept going to their full length.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import torch
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.create import create_checkpoint
from idefics.engine.engine import Engine
from idefics.engine.sampling_params import sampling_params
from idefics.server.guides import Grammar, Guides
from idefics.weights.files import EMBEDDED
from load_test import drawings, served
from measure import Case, Side, report
from same_weights import config

PROMPT = "User:<image>Describe the image.<end_of_utterance>\nAssistant:"
PATTERN = "(.|\n){4000}"  # longer than any answer here


class Work:
    """Requests for answers of a fixed length, about eight pictures that are new in every round.

    Args:
        tokens: of each answer.
        at_once: how many are open.
    """

    def __init__(self, *, tokens: int, at_once: int) -> None:
        self.tokens = tokens
        self.at_once = at_once
        self._seeds = count()

    def of_engine(self, model: Idefics, engine: Engine, answers: int) -> float:
        """Seconds that an engine takes; decoding the images is not its work."""
        params = sampling_params(model.defaults, {"max_new_tokens": self.tokens})
        guides = Guides(model.processor.tokenizer)
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in self._images()]
        left, open_now, began = answers, 0, time.monotonic()
        while left or open_now:
            while left and open_now < self.at_once:
                left -= 1
                open_now += 1
                inputs = model.processor.inputs([PROMPT], [[pictures[left % len(pictures)]]])
                guide = guides.of(Grammar("regex", PATTERN), answers=1, ends=params.eos_token_id)
                engine.add(inputs, params, guides=guide)
            open_now -= sum(event.finish is not None for event in engine.step())
        return time.monotonic() - began

    async def of_server(self, address: str, answers: int) -> float:
        """Seconds that a server takes."""
        data = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in self._images()]
        gate = asyncio.Semaphore(self.at_once)
        parameters = {"max_new_tokens": self.tokens, "grammar": {"type": "regex", "value": PATTERN}}
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:

            async def one(number: int) -> None:
                text = PROMPT.replace("<image>", f"![]({data[number % len(data)]})")
                async with gate:
                    response = await client.post("/generate", json={"inputs": text, "parameters": parameters})
                    assert response.headers.get("x-generated-tokens") == str(self.tokens), response.text

            began = time.monotonic()
            await asyncio.gather(*(one(number) for number in range(answers)))
            return time.monotonic() - began

    def _images(self) -> list[bytes]:
        return drawings(8, next(self._seeds))


def measured(folder: str, work: Work, *, answers: int, dtype: str, threads: int | None, rounds: int) -> Case:
    """Both in turns, the order changing every round."""
    given = []
    if threads is not None:
        torch.set_num_threads(threads)
        given = ["--threads", str(threads)]
    model = idefics.load(folder, dtype=dtype, device="cpu")
    engine = Engine(model.model)
    with served("--model", folder, "--dtype", dtype, *given) as (address, _):
        ways: list[Callable[[int], float]] = [
            lambda many: asyncio.run(work.of_server(address, many)),
            lambda many: work.of_engine(model, engine, many),
        ]
        seconds: list[list[float]] = [[], []]
        for way in ways:
            way(work.at_once)
        for number in range(rounds):
            for index in (0, 1) if number % 2 else (1, 0):
                seconds[index].append(ways[index](answers))
    its, alone = seconds
    return Case(
        name=f"{answers} answers of {work.tokens} tokens, {work.at_once} at once, server against engine alone",
        ours=Side.of(its),
        theirs=Side.of(alone),
        ratio=median(b / a for a, b in zip(its, alone, strict=True)),
        target=0.9,
        facts={
            "tokens per second": {
                "server": answers * work.tokens / median(its),
                "engine": answers * work.tokens / median(alone),
            },
            "threads": threads,
            "dtype": dtype,
        },
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
    work = Work(tokens=given.tokens, at_once=given.at_once)
    with TemporaryDirectory() as scratch:
        folder, what, dtype = str(EMBEDDED), "throughput", given.dtype or "float32"
        if given.layers:
            made = config(vision_layers=given.layers, text_layers=given.layers)
            what, dtype = f"throughput-{given.layers}-layers", given.dtype or "bfloat16"
            folder = str(create_checkpoint(made, Path(scratch) / "wide", dtype=dtype))
        case = measured(folder, work, answers=given.answers, dtype=dtype, threads=given.threads, rounds=given.rounds)
    name = case.name if given.threads is None else f"{case.name}, {given.threads} thread(s)"
    report(what, [replace(case, name=name)], save=not given.no_save)


if __name__ == "__main__":
    main()
