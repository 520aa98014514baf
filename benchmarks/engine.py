"""Requests from pictures and words to text: a second turn about the same picture, and many at once, against transformers.

    python benchmarks/engine.py                  # the embedded model
    python benchmarks/engine.py --layers 2       # Idefics2-8B with so many layers of tower and decoder, all of true size
    python benchmarks/engine.py --model FOLDER

Both sides load the same files in the same dtype, prepare the same pictures and write the same number of tokens. Pictures
are new in every round, so that nothing is found in a cache that the round itself did not put there. Answers are compared
before anything is timed: in float32 they must be equal; how often near ties fall apart in bfloat16 is told, also between
transformers' own batch and its rows alone. Then transformers answers one by one and in one padded batch; the faster counts.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

import idefics
from decode import weights
from idefics.api import Idefics
from idefics.config import Idefics2Config
from idefics.machine.ceilings import Ceilings, ceilings
from idefics.weights.create import create_checkpoint
from idefics.weights.files import EMBEDDED
from measure import Case, Side, report
from same_weights import config
from vision import operations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SIZES = ((640, 480), (480, 640), (800, 600), (320, 240), (600, 800), (512, 512), (1024, 576), (300, 400))
PHOTO = (1280, 960)
QUESTIONS = ("What is in the picture?", "How many objects are there?", "Describe the image.", "What color is it?")
SECOND = "And what else can you tell me about it?"


@dataclass(frozen=True)
class Talk:
    """A prompt as the chat template writes it, and its pictures."""

    prompt: str
    images: list[Image.Image]


class Peer:
    """transformers with the same files."""

    def __init__(self, folder: str, dtype: torch.dtype, *, split: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.processor = transformers.AutoProcessor.from_pretrained(folder)
            self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.processor.tokenizer.padding_side = "left"
        self.processor.image_processor.do_image_splitting = split
        self.dtype = dtype

    @torch.inference_mode()
    def answer(self, talks: list[Talk], tokens: int) -> list[list[int]]:
        """Exactly so many tokens for each, all in one padded batch."""
        images = [talk.images for talk in talks]
        inputs = self.processor(text=[talk.prompt for talk in talks], images=images, padding=True, return_tensors="pt")
        inputs = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        out = self.model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return [row[inputs["input_ids"].shape[1] :].tolist() for row in out]


class Bench:
    """Both sides, and talks that nobody has seen before."""

    def __init__(self, folder: str, dtype: str, *, tokens: int, split: bool) -> None:
        self.tokens = tokens
        self.ours: Idefics = idefics.load(folder, dtype=dtype, device="cpu", split=split)
        self.theirs = Peer(folder, getattr(torch, dtype), split=split)
        self.numbers = count()

    @property
    def config(self) -> Idefics2Config:
        """Of the model."""
        found = self.ours.model.config
        assert isinstance(found, Idefics2Config)
        return found

    def picture(self, width: int, height: int) -> Image.Image:
        """Smooth noise that nobody has seen before."""
        noise = np.random.default_rng(next(self.numbers)).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)

    def prompt(self, turns: list[str], images: int) -> str:
        """Questions and, between them, answers."""
        messages: list[dict[str, Any]] = []
        for place, text in enumerate(turns):
            pictures = [{"type": "image"}] * images if place == 0 else []
            role = "assistant" if place % 2 else "user"
            messages.append({"role": role, "content": [*pictures, {"type": "text", "text": text}]})
        return str(self.ours.processor.apply_chat_template(messages, add_generation_prompt=True))

    def talks(self, many: int) -> list[Talk]:
        """Questions about one picture, or about two; every call's are of the same sizes."""
        made, sizes = [], cycle(SIZES)
        for place in range(many):
            images = [self.picture(*next(sizes)) for _ in range(1 + place % 2)]
            made.append(Talk(self.prompt([QUESTIONS[place % len(QUESTIONS)]], len(images)), images))
        return made

    def answer(self, talks: list[Talk], tokens: int) -> list[list[int]]:
        """Our exactly so many tokens for each."""
        prompts, images = [talk.prompt for talk in talks], [talk.images for talk in talks]
        options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return [list(a.token_ids) for a in self.ours.generate(prompts, images, raw=True, details=True, **options)]

    def least(self, talks: list[Talk], reached: Ceilings) -> float:
        """Seconds that the machine needs for answers at best: pictures and prompts by their products, then step by step."""
        made, processor = self.config, self.ours.processor
        seen = [processor.image_processor.processed_sizes(*image.size) for talk in talks for image in talk.images]
        read = sum(len(processor.tokenizer.encode(processor.expand(talk.prompt))) for talk in talks)
        layers, head = weights(made), head_of(made)
        pictures = operations(made, [(height, width) for parts in seen for width, height in parts])
        prompts = 2.0 * (read * layers + len(talks) * head)
        step = reached.bound(moved=2.0 * (layers + head), operations=2.0 * len(talks) * (layers + head))
        return reached.bound(operations=pictures + prompts) + (self.tokens - 1) * step

    def agreement(self, many: int) -> dict[str, float]:
        """The share of tokens before the first that differs: ours from theirs, and theirs in a batch from theirs alone."""
        talks = self.talks(many)
        alone = [self.theirs.answer([talk], self.tokens)[0] for talk in talks]
        ours, batch = self.answer(talks, self.tokens), self.theirs.answer(talks, self.tokens)
        return {"ours": same(ours, alone), "their own batch": same(batch, alone)}


def same(answers: list[list[int]], others: list[list[int]]) -> float:
    """The share of tokens before the first that differs."""
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(answers, others, strict=True)]
    return sum(next((i for i, (a, b) in enumerate(p) if a != b), len(p)) for p in pairs) / sum(map(len, pairs))


def head_of(made: Idefics2Config) -> int:
    """Matrix elements of the decoder's head."""
    return made.text_config.hidden_size * made.text_config.vocab_size


def tell(what: str) -> None:
    """How far it is, as layers of true size take minutes."""
    print(what, file=sys.stderr, flush=True)


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def second_turn(bench: Bench, rounds: int, reached: Ceilings) -> Case:
    """Seconds to the first token of a second question about a photo that the first was about."""
    ours, theirs = [], []

    def turns() -> Iterator[tuple[Talk, Talk]]:
        for _ in range(rounds + 1):
            image = bench.picture(*PHOTO)
            first = bench.prompt([QUESTIONS[0]], 1)
            yield Talk(first, [image]), Talk(bench.prompt([QUESTIONS[0], "a thing", SECOND], 1), [image])

    for number, (first, second) in enumerate(turns()):
        bench.answer([first], bench.tokens)
        pair = [lambda s=second: bench.answer([s], 1), lambda s=second: bench.theirs.answer([s], 1)]
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {side: timed(pair[side]) for side in order}
        tell(f"a second turn, ours and theirs: {1000 * seconds[0]:.0f} and {1000 * seconds[1]:.0f} ms")
        if number:  # the first warms both up
            ours.append(seconds[0])
            theirs.append(seconds[1])
    ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
    return Case(
        name="second turn about a photo of 1280 x 960, first token",
        ours=Side.of(ours),
        theirs=Side.of(theirs),
        ratio=ratio,
        limit=reached.bound(moved=2.0 * (weights(bench.config) + head_of(bench.config))),
        target=20.0,
    )


def together(bench: Bench, many: int, rounds: int, reached: Ceilings, *, target: float | None) -> Case:
    """Seconds for so many requests at once; theirs the faster of one by one and one padded batch."""

    def one_by_one() -> None:
        for talk in bench.talks(many):
            bench.theirs.answer([talk], bench.tokens)

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: bench.answer(bench.talks(many), bench.tokens),
        "one by one": one_by_one,
        "one padded batch": lambda: bench.theirs.answer(bench.talks(many), bench.tokens),
    }
    if many == 1:
        del ways["one padded batch"]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(timed(ways[name]))
            tell(f"{many} at once, {name}: {1000 * seconds[name][-1]:.0f} ms")
    ours = seconds.pop("ours")
    ratios = {name: median(b / a for a, b in zip(ours, theirs, strict=True)) for name, theirs in seconds.items()}
    peer = min(ratios, key=lambda name: ratios[name])
    return Case(
        name=f"{many} request{'s' * (many > 1)}, {bench.tokens} tokens each",
        ours=Side.of(ours),
        theirs=Side.of(seconds[peer]),
        ratio=ratios[peer],
        limit=bench.least(bench.talks(many), reached),
        target=target,
        facts={"peer": peer, "ratios": ratios, "requests_per_second": many / median(ours)},
    )


def main() -> None:
    """Reads the command line, measures, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EMBEDDED), help="a folder in the published layout")
    parser.add_argument("--layers", type=int, help="instead of a model: layers of tower and decoder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--together", type=int, default=16, help="requests at once")
    parser.add_argument("--split", action="store_true", help="cut every picture in four and itself")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder, what = given.model, "engine"
        if given.layers:
            made = config(vision_layers=given.layers, text_layers=given.layers)
            folder, what = (
                str(create_checkpoint(made, Path(scratch) / "wide", dtype="bfloat16")),
                f"engine-{given.layers}-layers",
            )
        else:
            exact = Bench(folder, "float32", tokens=given.tokens, split=given.split).agreement(8)
            assert exact["ours"] == 1.0, f"in float32 answers agree for {exact['ours']:.1%} of tokens only"
        bench = Bench(folder, given.dtype, tokens=given.tokens, split=given.split)
        facts = {"agreement": bench.agreement(2 if given.layers else 16), "dtype": given.dtype, "split": given.split}
        reached = ceilings("cpu", [torch.bfloat16])
        cases = [
            second_turn(bench, given.rounds, reached),
            together(bench, 1, given.rounds, reached, target=None),
            together(bench, given.together, given.rounds, reached, target=4.0 if given.together == 16 else None),
        ]
        if given.split:
            what += "-split"
        report(what, [replace(case, facts={**case.facts, **facts}) for case in cases], reached=reached, save=not given.no_save)


if __name__ == "__main__":
    main()
