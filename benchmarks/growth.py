"""How the cost grows with the size of an image, the length of a prompt and the number of answers: ours, and transformers'.

    python benchmarks/growth.py          # writes benchmarks/results/growth_*.json and docs/growth.svg

Layers of Idefics2-8B's true size, two of the tower, two of the decoder, in bfloat16. Needs matplotlib (the extra `eval`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import transformers
from torch import Tensor

from idefics.engine.static_cache import StaticKVCache
from measure import Case, compare, report
from same_weights import both, config

EDGES = (378, 490, 686, 980)
PROMPTS = (64, 128, 256, 512, 1024)
ANSWERS = (1, 2, 4, 8, 16)
CONTEXT, STEPS, LAYERS = 256, 4, 2
CHART = Path(__file__).parent.parent / "docs" / "growth.svg"


class Sides:
    """Both models, of one set of weights."""

    def __init__(self) -> None:
        self.config = config(vision_layers=LAYERS, text_layers=LAYERS)
        self.theirs, self.ours = both(self.config)
        self.generator = torch.Generator().manual_seed(0)

    def ids(self, rows: int, tokens: int) -> Tensor:
        return torch.randint(3, 1000, (rows, tokens), generator=self.generator)

    def cache(self, rows: int, tokens: int) -> StaticKVCache:
        text = self.config.text_config
        places = [torch.device("cpu")] * text.num_hidden_layers
        return StaticKVCache(text, rows=rows, capacity=tokens, dtype=torch.bfloat16, devices=places)

    def our_pass(self, ids_BT: Tensor, cache: StaticKVCache) -> Tensor:
        places = torch.arange(cache.length, cache.length + ids_BT.shape[1]).expand_as(ids_BT)
        return self.ours.logits(self.ours(ids_BT, positions_BT=places, cache=cache)[:, -1])

    def their_pass(self, ids_BT: Tensor, cache: Any) -> Tensor:
        out: Tensor = self.theirs(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return out

    def image(self, edge: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A square picture through tower and connector."""
        pixels = torch.randn(3, edge, edge, generator=self.generator).bfloat16()
        return lambda: self.ours.encode_images([pixels]), lambda: self.theirs.model.get_image_features(pixels[None, None])

    def prompt(self, tokens: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A prompt of text to the logits after it."""
        ids = self.ids(1, tokens)
        return (
            lambda: self.our_pass(ids, self.cache(1, tokens)),
            lambda: self.their_pass(ids, transformers.DynamicCache(config=self.theirs.config)),
        )

    def answers(self, rows: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Tokens of several answers, one after the other."""
        ids, token = self.ids(rows, CONTEXT), self.ids(rows, 1)
        ours, theirs = self.cache(rows, CONTEXT + STEPS), transformers.DynamicCache(config=self.theirs.config)
        self.our_pass(ids, ours)
        self.their_pass(ids, theirs)

        def our_steps() -> None:
            ours.truncate(CONTEXT)
            for _ in range(STEPS):
                self.our_pass(token, ours)

        def their_steps() -> None:
            theirs.crop(CONTEXT - theirs.get_seq_length())
            for _ in range(STEPS):
                self.their_pass(token, theirs)

        return our_steps, their_steps


def chart(curves: Sequence[tuple[str, str, Sequence[int], Sequence[Case]]], path: Path) -> None:
    """Three plots side by side: what grows, and milliseconds of both sides."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(12, 3.6))
    for axis, (title, label, sizes, cases) in zip(axes, curves, strict=True):
        for name, seconds in (
            ("idefics", [case.ours.median for case in cases]),
            ("transformers", [case.theirs.median for case in cases if case.theirs is not None]),
        ):
            axis.plot(sizes, [1000 * s for s in seconds], marker="o", label=name)
        axis.set(title=title, xlabel=label, ylabel="ms", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


@torch.inference_mode()
def main() -> None:
    """Measures, reports, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    sides = Sides()
    kinds: tuple[tuple[str, str, Sequence[int], Callable[[int], Any]], ...] = (
        ("an image, tower and connector", "pixels per side", EDGES, sides.image),
        ("reading a prompt", "tokens", PROMPTS, sides.prompt),
        (f"{STEPS} tokens of each answer", "answers", ANSWERS, sides.answers),
    )
    curves = []
    for title, label, sizes, make in kinds:
        cases = [compare(f"{title}: {size} {label}", *make(size), rounds=given.rounds, layers=LAYERS) for size in sizes]
        curves.append((title, label, sizes, cases))
    report("growth", [case for *_, cases in curves for case in cases])
    chart(curves, CHART)


if __name__ == "__main__":
    main()
