"""Idefics2-8B on one GPU, random weights made there, against transformers and the GPU's own limits; under eight minutes.

    PYTHONPATH=src python3 benchmarks/gpu.py
    PYTHONPATH=src python3 benchmarks/gpu.py --only decode together
    PYTHONPATH=src python3 benchmarks/gpu.py --tiny            # tests this script, on any machine

Both sides have the same weights and get the same ids and pixels; nothing is read from files and nothing prepared. What one
case raises is reported as that case's, and the others go on. Seconds of the model card are of an H100, for 20 generations
whose length it does not tell: here two images, 60 words and 24 new tokens.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch

from gpu_peer import Peer, forget_compiled
from gpu_sides import Prompt, World, exactly
from idefics.engine.engine import Engine
from idefics.engine.request import Token
from idefics.machine.ceilings import Ceilings, ceilings
from idefics.machine.dtypes import dtype_name
from idefics.model.layers.paged_attention import PAGED
from idefics.model.layers.varlen import VARLEN
from measure import Case, Side, compare, report
from vision import operations

CARD = {
    (torch.bfloat16, False): (14.4, 22.2),
    (torch.bfloat16, True): (34.3, 41.3),
    (torch.float16, False): (13.9, 21.3),
    (torch.float16, True): (33.3, 36.7),
}
"""Of the model card, by dtype and splitting: seconds of 20 generations, and GB, with SDPA on an H100."""

GENERATIONS = 20


def vision(world: World, reached: Ceilings) -> Iterator[Case]:
    """Tower and connector: one image, and a mixed batch, which the peer pads to its largest."""
    from vision import padded

    for name, sizes, target in (("one photo", [world.sizes.photo], None), ("a mixed batch", [*world.sizes.mixed], 3.0)):
        images = [world.image(*size).to(world.device) for size in sizes]

        @torch.inference_mode()
        def ours(images: list[torch.Tensor] = images) -> Any:
            return world.model.encode_images(images)

        given = {name: value.to(world.device) for name, value in padded(images).items()}  # by their processor, so not timed

        @torch.inference_mode()
        def theirs(given: dict[str, torch.Tensor] = given) -> Any:
            return world.theirs.model.get_image_features(**given)

        needed = operations(world.config, sizes)
        case = compare(
            f"tower and connector, {name}",
            ours,
            theirs if world.theirs is not None else None,
            rounds=world.sizes.rounds,
            limit=reached.bound(operations=needed, dtype=world.dtype),
            target=target,
            sizes=sizes,
        )
        yield replace(case, facts={**case.facts, "teraflops": needed / case.ours.median / 1e12})


def prefill(world: World, reached: Ceilings) -> Iterator[Case]:
    """A prompt of words, up to its first token."""
    tokens = world.sizes.prompt
    engine = world.engine(tokens=tokens + 16, rows=2)
    needed = 2.0 * tokens * sum(p.numel() for p in world.model.text_model.layers.parameters())
    case = compare(
        f"prompt of {tokens} tokens",
        lambda: world.answer(engine, [world.prompt(tokens - 1)], 1),
        None if world.theirs is None else lambda: world.their_answer(world.their_inputs([world.prompt(tokens - 1)]), 1),
        rounds=world.sizes.rounds,
        limit=reached.bound(operations=needed, dtype=world.dtype),
    )
    yield replace(case, facts={"tokens_per_second": tokens / case.ours.median})


def decode(world: World, reached: Ceilings) -> Iterator[Case]:
    """Steps of one token for each of several answers after a context of so many tokens."""
    sizes, peer = world.sizes, Peer(world)
    for rows in sizes.batches:
        room = (sizes.rounds + 2) * sizes.steps + 8
        engine = world.engine(tokens=rows * (sizes.context + room), rows=rows)
        for _ in range(rows):
            engine.add(world.prompt(sizes.context - 1).inputs(), exactly(room))
        while not all(answer.decoding for answer in engine.scheduler.running) or engine.scheduler.waiting:
            engine.step()
        moved = world.weight_bytes(decoder_only=True) + rows * sizes.context * world.key_bytes()
        way, theirs = (None, None) if world.theirs is None else peer.steps(rows)
        case = compare(
            f"{sizes.steps} tokens after {sizes.context}, batch {rows}",
            lambda engine=engine: [engine.step() for _ in range(sizes.steps)],
            theirs,
            rounds=sizes.rounds,
            limit=sizes.steps * reached.bound(moved=moved),
        )
        assert engine.busy, "the answers ended while they were measured"
        each = case.ours.median / sizes.steps
        facts = {
            "tokens_per_second": rows / each,
            "gigabytes_per_second": moved / each / 1e9,
            "tokens_per_second_at_the_limit": rows / reached.bound(moved=moved),
            "recorded": recorded(engine),
            "peer": way,
            "peer_seconds": peer.seconds,
            "peer_left_out": peer.left_out,
        }
        yield replace(case, facts=facts)
    if world.theirs is not None:
        forget_compiled(world)


def recorded(engine: Engine) -> bool:
    """Whether steps were replayed as CUDA graphs."""
    return engine.runner.graphs is not None and engine.runner.graphs.shortcut.open


def second_turn(world: World, _: Ceilings) -> Iterator[Case]:
    """Seconds to the first token of a second question about a picture that a first was about."""
    sizes, ours, theirs = world.sizes, [], []
    engine = world.engine(tokens=2 * (sizes.words * 2 + sizes.answer + 100), rows=2)
    for number in range(2 * sizes.rounds + 1):
        first = world.prompt(sizes.words, [sizes.photo])
        (answer,) = world.answer(engine, [first], sizes.answer)
        second = replace(first, ids=[*first.ids, *answer, *world.prompt(sizes.words).ids])
        seconds = world.timed(lambda second=second: world.answer(engine, [second], 1))
        other = 0.0
        if world.theirs is not None:
            inputs = world.their_inputs([second])
            other = world.timed(lambda inputs=inputs: world.their_answer(inputs, 1))
        if number:  # the first warms both up
            ours.append(seconds)
            theirs.append(other)
    case = Case(name="second turn, first token", ours=Side.of(ours))
    if world.theirs is not None:
        ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
        case = replace(case, theirs=Side.of(theirs), ratio=ratio, target=20.0)
    yield case


def together(world: World, _: Ceilings) -> Iterator[Case]:
    """Many requests at once, one image of another size each; theirs one by one, and in one padded batch."""
    sizes = world.sizes
    engine = world.engine(tokens=sizes.together * (sizes.words + sizes.answer + 80), rows=sizes.together)

    rounds = max(1, sizes.rounds - 1)

    # Drawn before anything is timed: the noise takes longer than the answers.
    def drawn() -> list[list[Prompt]]:
        sides = [sizes.mixed[n % len(sizes.mixed)] for n in range(sizes.together)]
        return [[world.prompt(sizes.words, [side]) for side in sides] for _ in range(rounds + 1)]

    def theirs(batches: list[list[dict[str, torch.Tensor]]]) -> Callable[[], Any]:
        left = iter(batches)
        return lambda: [world.their_answer(inputs, sizes.answer) for inputs in next(left)]

    ways: dict[str, Callable[[], Any] | None] = {"alone": None}
    if world.theirs is not None:
        ways = {
            "one by one": theirs([[world.their_inputs([prompt]) for prompt in prompts] for prompts in drawn()]),
            "one padded batch": theirs([[world.their_inputs(prompts)] for prompts in drawn()]),
        }
    cases = {}
    for way, run in ways.items():
        fresh = iter(drawn())
        cases[way] = compare(
            f"{sizes.together} requests, {sizes.answer} tokens each",
            lambda fresh=fresh: world.answer(engine, next(fresh), sizes.answer),
            run,
            rounds=rounds,
            target=4.0,
        )
    way, worst = min(cases.items(), key=lambda item: item[1].ratio or 0.0)
    facts = {"peer": way, "ratios": {name: case.ratio for name, case in cases.items()}}
    yield replace(worst, facts={**facts, "requests_per_second": sizes.together / worst.ours.median})


def saturated(world: World, reached: Ceilings) -> Iterator[Case]:
    """As many answers as run together: tokens per second."""
    sizes = world.sizes
    rows, tokens, words = sizes.saturated, sizes.saturated_tokens, sizes.words
    engine = world.engine(tokens=rows * (words + tokens + 1), rows=rows, at_once=8192)
    held = rows * (words + tokens / 2) * world.key_bytes()
    case = compare(
        f"{rows} answers of {tokens} tokens",
        lambda: world.answer(engine, [world.prompt(words) for _ in range(rows)], tokens),
        None,
        rounds=max(1, sizes.rounds - 1),
        limit=tokens * reached.bound(moved=world.weight_bytes(decoder_only=True) + held),
    )
    yield replace(case, facts={"tokens_per_second": rows * tokens / case.ours.median, "recorded": recorded(engine)})


def preparing(world: World, _: Ceilings) -> Iterator[Case]:
    """Photos to pixels, which no GPU takes part in; left out where Pillow is missing."""
    if find_spec("PIL") is None:
        print("  left out: Pillow is not installed", file=sys.stderr)
        return
    from preprocessing import FIVE, measured

    sizes = ((64, 48), (48, 64)) if world.tiny else FIVE
    yield measured(f"{len(sizes)} photos to pixels", sizes, target=8.0)
    yield measured(f"{len(sizes)} photos to pixels, split", sizes, split=True, target=8.0)


def card(world: World, _: Ceilings) -> Iterator[Case]:
    """The card's 20 generations, one after the other; of the peer's a few are run, and 20 counted."""
    sizes, kept = world.sizes, world.dtype
    few = 1 if world.tiny else 2
    for (dtype, split), (card_seconds, card_gigabytes) in CARD.items():
        world.cast(dtype)
        height, width = sizes.photo
        quarter = (max(14, height // 2), max(14, width // 2))
        images = 2 * ([quarter] * 4 + [sizes.photo] if split else [sizes.photo])
        engine = world.engine(tokens=len(images) * 66 + sizes.words + sizes.answer + 16, rows=1)
        world.answer(engine, [world.prompt(sizes.words, images)], sizes.answer)
        seconds: list[float] = []

        def ours(images: list[tuple[int, int]] = images, engine: Engine = engine, seconds: list[float] = seconds) -> None:
            for _ in range(few if world.tiny else GENERATIONS):
                prompt = world.prompt(sizes.words, images)  # outside of what is timed, as preparing is not measured
                seconds.append(world.timed(lambda prompt=prompt: world.answer(engine, [prompt], sizes.answer)))

        peak = world.peak(ours)
        facts = {"card_seconds": card_seconds, "card_gigabytes": card_gigabytes, "peak_bytes": peak}
        ours_20 = GENERATIONS * median(seconds)
        name = f"20 generations, {dtype_name(dtype)}{', split' if split else ''}"
        case = Case(name=name, ours=Side.of([GENERATIONS * s for s in seconds]), facts=facts, target=5.0)
        if world.theirs is not None:
            others = []
            for _ in range(few + 1):
                inputs = world.their_inputs([world.prompt(sizes.words, images)])
                others.append(world.timed(lambda inputs=inputs: world.their_answer(inputs, sizes.answer)))
            their_20 = [GENERATIONS * s for s in others[1:]]  # the first warms up
            case = replace(case, theirs=Side.of(their_20), ratio=median(their_20) / ours_20)
        facts["faster_than_the_card"] = ours_20 < card_seconds
        facts["below_its_memory"] = None if peak is None else peak < card_gigabytes * 1e9
        yield case
    world.cast(kept)


def memory(world: World, _: Ceilings) -> Iterator[Case]:
    """Everything that one question about one image needs at once, the weights included."""
    sizes = world.sizes
    prompt = world.prompt(sizes.words, [sizes.photo])
    seconds: list[float] = []

    def run() -> None:
        engine = world.engine(tokens=len(prompt.ids) + sizes.answer, rows=1)
        seconds.append(world.timed(lambda: world.answer(engine, [prompt], sizes.answer)))

    peak, weights = world.peak(run), world.weight_bytes()
    ratio = None if peak is None else peak / weights
    facts = {"peak_bytes": peak, "weight_bytes": weights, "peak_over_weights": ratio}
    facts["within_1.05"] = None if ratio is None else ratio <= 1.05
    yield Case(name="one question about one image", ours=Side.of(seconds), facts=facts)


# Memory first: what compilers and earlier engines leave behind would count as the question's.
CASES = {f.__name__: f for f in (memory, vision, prefill, decode, second_turn, together, saturated, card, preparing)}


def agreement(world: World) -> float:
    """How far apart the two sides' next-token logits are after a prompt with an image, relative to theirs."""
    prompt = world.prompt(world.sizes.words, [world.sizes.photo])
    engine = world.engine(tokens=len(prompt.ids) + 16, rows=1)
    engine.add(prompt.inputs(), replace(exactly(1), logprobs=20))
    (event,) = [event for _ in iter(lambda: engine.busy, False) for event in engine.step()]
    assert isinstance(event, Token)
    with torch.inference_mode():
        from vision import padded

        given = {name: value.to(world.device) for name, value in padded(prompt.images).items()}
        logits_V = world.theirs(input_ids=torch.tensor([prompt.ids], device=world.device), **given).logits[0, -1]
    logprobs = logits_V.float().log_softmax(-1)
    return max(abs(float(logprobs[token]) - logprob) for token, logprob in event.top)


def main() -> int:
    """Reads the command line, measures, reports; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--tiny", action="store_true", help="a model of a few kilobytes; nothing is saved")
    parser.add_argument("--no-peer", action="store_true", help="without transformers")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny tests this script without one")
    began, apart = time.perf_counter(), None
    world = World(tiny=arguments.tiny, peer=not arguments.no_peer)
    reached = ceilings(world.device, (torch.float32, torch.bfloat16))
    cases: list[Case] = []
    failed = 0
    if world.theirs is not None:
        try:
            apart = agreement(world)
            assert apart < 0.25, f"the two sides do not compute the same: log-probabilities differ by {apart:.2f}"
        except Exception:  # what compares nothing is worth having
            failed, world.theirs = 1, None
            traceback.print_exc()
            print("the peer is left out", file=sys.stderr)
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            cases.extend(CASES[name](world, reached))
        except Exception:  # whatever it is, the other cases are worth having
            failed += 1
            traceback.print_exc()
            cases.append(Case(name=f"{name}: FAILED", ours=Side.of([0.0]), facts={"error": traceback.format_exc()}))
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    given_up = [way.name for way in (PAGED, VARLEN) if not way.open]
    seconds = round(time.perf_counter() - began)
    facts = {"given_up": given_up, "seconds": seconds, "log_probabilities_apart": apart}
    report("gpu", cases, reached=reached, save=not (arguments.no_save or arguments.tiny), **facts)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
