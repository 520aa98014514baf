"""A checkpoint of the size of Idefics2-8B: how long it takes to load, what it costs in memory, and an answer.

    idefics init idefics2-8b /some/folder          # random weights, 16.8 GB
    python benchmarks/large.py /some/folder

Each side runs in a process of its own, whose peak of resident memory is read from the kernel; pages of a memory-mapped file
that the system may drop at any time count only while they are resident. Ours packs its weights when they are first used, so
loading is worth little without the first token. The question is about a photo of 1920 x 1080 with splitting: five sub-images,
320 image tokens. The limits are the products of images and prompt at the rate of a large one, and the weights that a token
reads at the speed of memory, both measured just before; what packing and the disk take is not in them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measure import Case, Side, report

GIB = 2**30
PEAK = 18 * GIB
SIZE = (1920, 1080)


def photo() -> Image.Image:
    """Something smooth of `SIZE`."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)


def ours(folder: Path, tokens: int) -> dict[str, Any]:
    """Loads, answers, and tells what it took."""
    import idefics

    began = time.perf_counter()
    asked = idefics.load(folder, device="cpu")
    loaded, picture = time.perf_counter() - began, photo()
    begun, times = time.perf_counter(), []
    for _ in asked.engine.stream(*_request(asked, picture, tokens)):
        times.append(time.perf_counter() - begun)
    return _taken(loaded, times)


def limits(folder: Path, _: int) -> dict[str, float]:
    """Seconds that a first token and one more take at least."""
    import torch

    from decode import weights
    from idefics.config import Idefics2Config
    from idefics.machine.ceilings import ceilings
    from idefics.processor.image import ImageProcessor
    from idefics.weights.load import load_config
    from vision import operations

    config, reached = load_config(folder), ceilings("cpu", [torch.bfloat16])
    assert isinstance(config, Idefics2Config), "a checkpoint of the second generation"
    images = ImageProcessor.from_folder(folder, do_image_splitting=True)
    sizes = [(height, width) for width, height in images.processed_sizes(*SIZE)]
    prompt = len(sizes) * config.perceiver_config.resampler_n_latents
    head = config.text_config.vocab_size * config.text_config.hidden_size
    first = reached.bound(operations=operations(config, sizes) + 2.0 * prompt * weights(config))
    return {
        "first_token": first,
        "from_nothing": first,
        "seconds_per_token": reached.bound(moved=2.0 * (weights(config) + head)),
    }


def theirs(folder: Path, tokens: int) -> dict[str, Any]:
    """The same by transformers."""
    import torch
    import transformers

    began = time.perf_counter()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    loaded, picture = time.perf_counter() - began, photo()
    processor.image_processor.do_image_splitting = True
    begun, times = time.perf_counter(), []

    def told(ids_BT: torch.Tensor, _: Any) -> torch.Tensor:
        times.append(time.perf_counter() - begun)
        return torch.zeros(len(ids_BT), dtype=torch.bool)

    class Watch(transformers.StoppingCriteria):
        __call__ = staticmethod(told)

    prompt = _prompt(processor.image_token, processor.apply_chat_template, processor.chat_template)
    inputs = processor(text=[prompt], images=[[picture]], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    with torch.inference_mode():
        model.generate(**inputs, **options, stopping_criteria=transformers.StoppingCriteriaList([Watch()]))
    return _taken(loaded, times)


def _taken(load: float, times: list[float]) -> dict[str, Any]:
    return {
        "load": load,
        "first_token": times[0],
        "from_nothing": load + times[0],
        "seconds_per_token": (times[-1] - times[0]) / (len(times) - 1),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _prompt(image_token: str, apply_chat_template: Callable[..., Any], template: object) -> str:
    if template is None:
        return f"{image_token}What is in this photo?"
    content = [{"type": "image"}, {"type": "text", "text": "What is in this photo?"}]
    return str(apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _request(asked: Any, picture: Image.Image, tokens: int) -> tuple[Any, Any]:
    from idefics.engine.sampling_params import sampling_params

    processor = asked.processor.adjusted(split=True)
    prompt = _prompt(processor.image_token, processor.apply_chat_template, processor.chat_template)
    inputs = processor.inputs([prompt], [[picture]])
    return inputs, [sampling_params(asked.defaults, {"max_new_tokens": tokens, "min_new_tokens": tokens})]


SIDES: dict[str, Callable[[Path, int], dict[str, Any]]] = {"ours": ours, "theirs": theirs}
INSIDE = {**SIDES, "limits": limits}


def apart(side: str, folder: Path, tokens: int) -> dict[str, Any]:
    """What a side took in a fresh process, whose peak of memory is its own.

    Raises:
        subprocess.CalledProcessError: it did not end in order.
    """
    command = [sys.executable, __file__, str(folder), "--tokens", str(tokens), "--inside", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Reads the command line and runs both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(INSIDE[arguments.inside](arguments.folder, arguments.tokens)))
        return
    least = apart("limits", arguments.folder, arguments.tokens)
    took = {side: apart(side, arguments.folder, arguments.tokens) for side in SIDES}
    size = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    peaks = {side: found["peak"] for side, found in took.items()}
    facts = {"weights": size, "peaks": peaks, "peak_at_most": PEAK, "within": peaks["ours"] <= PEAK}
    names = {
        "load": "load",
        "first_token": "first token, 5 sub-images",
        "from_nothing": "load and first token",
        "seconds_per_token": "one more token",
    }
    cases = []
    for key, name in names.items():
        seconds = {side: found[key] for side, found in took.items()}
        cases.append(
            Case(
                name=f"{name}, {size / 1e9:.1f} GB",
                ours=Side.of([seconds["ours"]]),
                theirs=Side.of([seconds["theirs"]]),
                ratio=seconds["theirs"] / seconds["ours"],
                limit=least.get(key),
                facts=facts,
            )
        )
    for side, peak in peaks.items():
        print(f"peak of resident memory, {side}: {peak / GIB:.2f} GiB")
    report("large", cases)


if __name__ == "__main__":
    main()
