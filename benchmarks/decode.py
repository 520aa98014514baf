"""The decoder of Idefics2-8B: tokens one by one after a context, and a prompt at once. Layers of true size, a real checkpoint.

    python benchmarks/decode.py                      # four layers and the head, five processes a side
    python benchmarks/decode.py --dtype float32

A process is given fast or slow memory when it starts, and keeps it: the same products take 38 or 53 ms. So each side runs in
several processes of its own, in turns, and medians over processes are compared. Ours goes through the engine, as answers do.

Left out, the dtype is bfloat16 where the processor multiplies it and float32 elsewhere, as transformers takes minutes there.

The limit is what the weights take to be read at the speed that the same process reads them where they lie, arranged as they
are for the products. What a step takes beyond its products (attention, norms, the choice of a token, Python) is counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from idefics.config import Idefics2Config
from idefics.machine.arithmetic import multiplies
from idefics.machine.dtypes import dtype_named
from measure import Case, Side, report
from same_weights import config

CONTEXT, PROMPT, ROUNDS = 500, 600, 3


def weights(made: Idefics2Config) -> int:
    """Matrix elements of the decoder's layers, the head not among them."""
    text = made.text_config
    inner, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (2 * inner + 2 * keys + 3 * text.intermediate_size)
    return text.num_hidden_layers * layer


def prompts(vocabulary: int, length: int) -> Iterator[torch.Tensor]:
    """Ids (1, length), other ones each time, so that nothing is found in a cache."""
    generator = torch.Generator().manual_seed(length)  # or the longer ones would begin with the shorter ones
    while True:
        yield torch.randint(3, vocabulary - 3, (1, length), generator=generator)


def ours(folder: Path, dtype: str, tokens: int) -> dict[str, Any]:
    """Seconds of `tokens` steps and of a prompt through the engine, and what the weights take to be read."""
    import idefics
    from idefics.engine.request import Ended
    from idefics.engine.sampling_params import SamplingParams
    from idefics.inputs import ModelInputs
    from idefics.linears.packed import PackedLinear
    from idefics.linears.packing import finish_packing
    from idefics.machine.ceilings import ceilings, reading

    loaded = idefics.load(folder, dtype=dtype, device="cpu")
    model, engine = finish_packing(loaded.model), loaded.engine
    text = model.config.text_config

    def add(ids_1T: torch.Tensor, new: int) -> None:
        inputs = ModelInputs(input_ids_BT=ids_1T, attention_mask_BT=torch.ones_like(ids_1T), images_per_row=(0,))
        engine.add(inputs, SamplingParams(max_new_tokens=new, eos_token_id=()))

    def step() -> float:
        began = time.perf_counter()
        events = engine.step()
        took = time.perf_counter() - began
        for event in events:
            assert not isinstance(event, Ended) or event.error is None, event
        return took

    steps, reads = [], []
    for ids in islice(prompts(text.vocab_size, CONTEXT), ROUNDS + 1):
        add(ids, tokens + 1)
        step()
        steps.append(sum(step() for _ in range(tokens)))
        assert not engine.busy
    for ids in islice(prompts(text.vocab_size, PROMPT), ROUNDS + 1):
        add(ids, 1)
        reads.append(step())
        assert not engine.busy, "a prompt takes several passes, of which one was timed"
    assert engine.state().found_tokens == 0, "prompts were found in the cache"
    layers = [
        module for part in (model.text_model, model.lm_head) for module in part.modules() if isinstance(module, PackedLinear)
    ]
    assert layers, "the weights are not packed"
    rows = {layer.in_features: torch.randn(1, layer.in_features).to(model.dtype) for layer in layers}
    memory = [layer.memory for layer in layers]
    with torch.inference_mode():
        products = least(lambda: [layer(rows[layer.in_features]) for layer in layers])
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * CONTEXT * model.dtype.itemsize
    rate = reading(memory)
    return {
        "tokens": statistics.median(steps[1:]),
        "prompt": statistics.median(reads[1:]),
        "products": tokens * products,
        "bytes": sum(each.nbytes for each in memory) + cached,
        "bytes_per_second": rate,
        "operations_per_second": ceilings("cpu", [model.dtype]).operations_per_second[dtype],
    }


def theirs(folder: Path, dtype: str, tokens: int) -> dict[str, Any]:
    """Seconds of `tokens` steps and of a prompt, without what `generate` does around them."""
    import transformers

    model = transformers.Idefics2ForConditionalGeneration.from_pretrained(
        folder, dtype=dtype_named(dtype), attn_implementation="sdpa"
    ).eval()
    vocabulary = model.config.text_config.vocab_size
    steps, reads = [], []
    with torch.inference_mode():

        def forward(ids_1T: torch.Tensor, cache: Any) -> torch.Tensor:
            out = model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1].argmax(-1, keepdim=True)

        for ids in islice(prompts(vocabulary, CONTEXT), ROUNDS + 1):
            cache = transformers.DynamicCache(config=model.config)
            token = forward(ids, cache)
            began = time.perf_counter()
            for _ in range(tokens):
                token = forward(token, cache)
            steps.append(time.perf_counter() - began)
        for ids in islice(prompts(vocabulary, PROMPT), ROUNDS + 1):
            began = time.perf_counter()
            forward(ids, transformers.DynamicCache(config=model.config))
            reads.append(time.perf_counter() - began)
    return {"tokens": statistics.median(steps[1:]), "prompt": statistics.median(reads[1:])}


def least(run: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measured(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One process of one side."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    command += ["--dtype", options.dtype, "--tokens", str(options.tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(side, {name: f"{value:.4g}" for name, value in found.items()}, file=sys.stderr)
    return found


def cases(made: Idefics2Config, runs: dict[str, list[dict[str, Any]]], tokens: int) -> list[Case]:
    """Both kinds of work, over all processes."""

    def sides(what: str) -> tuple[Side, Side]:
        return Side.of([run[what] for run in runs["ours"]]), Side.of([run[what] for run in runs["theirs"]])

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(of, runs["ours"]))

    text = made.text_config
    scores = text.num_hidden_layers * text.num_attention_heads * text.head_dim * PROMPT**2  # half of them are masked
    operations = 2.0 * (PROMPT * weights(made) + scores + text.hidden_size * text.vocab_size)
    shared: dict[str, Any] = dict(layers=text.num_hidden_layers, processes=len(runs["ours"]))
    mine, other = sides("tokens")
    written = Case(
        name=f"{tokens} tokens, batch 1, after {CONTEXT}",
        ours=mine,
        theirs=other,
        ratio=other.median / mine.median,
        # Shares of processes, not of medians: each has memory of its own speed.
        limit=mine.median * median(lambda run: tokens * run["bytes"] / run["bytes_per_second"] / run["tokens"]),
        target=1.8,
        facts=dict(
            tokens=tokens,
            products=median(lambda run: run["products"] / run["tokens"]),
            bytes_per_second=[run["bytes_per_second"] for run in runs["ours"]],
            **shared,
        ),
    )
    mine, other = sides("prompt")
    read = Case(
        name=f"a prompt of {PROMPT} tokens",
        ours=mine,
        theirs=other,
        ratio=other.median / mine.median,
        limit=mine.median * median(lambda run: operations / run["operations_per_second"] / run["prompt"]),
        facts=shared,
    )
    return [written, read]


def main() -> None:
    """Runs both sides in turns, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the decoder, each of its true size")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16" if multiplies(torch.bfloat16) else "float32")
    parser.add_argument("--processes", type=int, default=5, help="of each side")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = {"ours": ours, "theirs": theirs}[options.side]
        print(json.dumps(side(options.folder, options.dtype, options.tokens)))
        return
    made = config(vision_layers=1, text_layers=options.layers)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        from idefics.weights.create import create_checkpoint

        where = create_checkpoint(made, Path(folder) / "checkpoint", dtype=options.dtype)
        for number in range(options.processes):
            for side in ("ours", "theirs")[:: 1 if number % 2 else -1]:
                runs[side].append(measured(side, where, options))
    what = "decode" if options.dtype == "bfloat16" else f"decode-{options.dtype}"
    report(what, cases(made, runs, options.tokens), save=not options.no_save)


if __name__ == "__main__":
    main()
