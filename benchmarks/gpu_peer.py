"""The peer's steps of one token, in each setting that it supports: a growing cache, and a static one with a compiled model.

A setting that fails, or takes too long to compile, is left out and named. Of the others the fastest counts.
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpu_sides import World

__all__ = ["Peer", "forget_compiled"]

DYNAMIC, STATIC = "growing cache", "static cache, compiled"
APART = 0.1
"""Length of the difference over length of the logits up to which two settings compute the same in 16 bits."""


@dataclass(eq=False)
class Peer:
    """Chooses among the settings.

    Attributes:
        patience: seconds for compiling, all batch sizes together; each is compiled anew, for its own shapes.
        left_out: reasons, of the batch size asked for last.
        seconds: of each setting, for the same.
    """

    world: World
    patience: float = 150.0
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def steps(self, rows: int) -> tuple[str, Callable[[], Any]]:
        """The fastest setting's name, and what runs its steps for so many answers after the world's context."""
        self.left_out, self.seconds = {}, {}
        ids = torch.randint(100, 1000, (rows, self.world.sizes.context), device=self.world.device)
        found = {DYNAMIC: growing(self.world, ids)}
        began = time.perf_counter()
        try:
            with at_most(self.patience):
                found[STATIC] = static(self.world, ids)
        except Exception as error:  # compilers raise anything
            self.left_out[STATIC] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            forget_compiled(self.world)
        self.patience -= time.perf_counter() - began
        for way, run in found.items():
            run()
            self.seconds[way] = min(self.world.timed(run) for _ in range(2))
        way = min(self.seconds, key=lambda way: self.seconds[way])
        return way, found[way]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where the program is when the time is over; in the main thread only."""
    if seconds < 1:
        raise TimeoutError("no time is left for compiling")

    def over(*_: Any) -> None:
        raise TimeoutError(f"not compiled within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@torch.inference_mode()
def growing(world: World, ids: Tensor) -> Callable[[], None]:
    """The default: keys and values are appended, and nothing is compiled."""
    from transformers import DynamicCache

    cache = DynamicCache(config=world.theirs.config)
    world.theirs(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def run() -> None:
        newest = ids[:, -1:]
        for _ in range(world.sizes.steps):
            out = world.theirs(input_ids=newest, past_key_values=cache, use_cache=True, logits_to_keep=1)
            newest = out.logits[:, -1].argmax(-1, keepdim=True)
            newest.tolist()  # as whoever streams them reads them
        cache.crop(-world.sizes.steps)

    return run


@torch.no_grad()  # not inference mode, whose tensors compiled code cannot all take
def static(world: World, ids: Tensor) -> Callable[[], None]:
    """What `generate(cache_implementation="static")` does after the prompt, compiled by its own means, with CUDA graphs.

    The window is left out of the cache: it is longer than the context, and counting in it is what would be compiled anew at
    every step.
    """
    from transformers import CompileConfig, StaticCache

    rows, context = ids.shape
    room = context + world.sizes.steps
    config = copy.deepcopy(world.theirs.config.get_text_config())
    assert config.sliding_window is None or config.sliding_window >= room, "the window matters"
    config.sliding_window = None
    forget_compiled(world)
    cache = StaticCache(config=config, max_cache_len=room)
    place_S = torch.arange(room, device=world.device)
    given: dict[str, Any] = dict(past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True)
    mask = (place_S <= place_S[:context, None])[None, None].expand(rows, -1, -1, -1)
    world.theirs(input_ids=ids, attention_mask=mask, position_ids=place_S[None, :context], **given)
    masks = [(place_S <= place)[None, None, None].repeat(rows, 1, 1, 1) for place in range(context, room)]
    places = [torch.full((rows, 1), place, device=world.device) for place in range(context, room)]
    compiled = world.theirs.get_compiled_call(
        CompileConfig(dynamic=False) if world.device.type == "cuda" else CompileConfig(dynamic=False, backend="eager")
    )

    def step(model: Callable[..., Any], newest: Tensor, number: int) -> Tensor:
        out = model(input_ids=newest, attention_mask=masks[number], position_ids=places[number], **given)
        logits_RV: Tensor = out.logits[:, -1]
        return logits_RV

    def rewind() -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)

    @torch.no_grad()
    def run() -> None:
        newest = first
        for number in range(world.sizes.steps):
            torch.compiler.cudagraph_mark_step_begin()
            newest = step(compiled, newest, number).argmax(-1, keepdim=True)
            newest.tolist()
        rewind()

    first = ids[:, -1:].clone(memory_format=torch.contiguous_format)  # of the strides that later ones have: compiled once
    expected = step(world.theirs, first, 0).float()
    rewind()
    run()
    found = step(compiled, first, 0).float()
    rewind()
    apart = float((found - expected).norm() / expected.norm())
    if not apart < APART:
        raise ArithmeticError(f"compiled and not, logits differ by {apart:.1%}")
    return run


def forget_compiled(world: World) -> None:
    """Frees what was compiled and recorded for other shapes, so that the next are not compiled for any shape."""
    torch.compiler.reset()
    world.theirs.__dict__.pop("_compiled_call", None)
