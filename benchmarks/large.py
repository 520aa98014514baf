"""A checkpoint of the size of Idefics2-8B: how long it takes to load, what it costs in memory, and an answer.

    idefics init idefics2-8b /some/folder          # random weights, 16.8 GB
    python benchmarks/large.py /some/folder

Each side runs in a process of its own, whose peak of resident memory is read from the kernel; pages of a memory-mapped file
that the system may drop at any time count only while they are resident. The question is about a photo of 1920 x 1080 with
splitting: five sub-images, 320 image tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measure import Case, Side, report

GIB = 2**30
PEAK = 18 * GIB
SIZE = (1920, 1080)


def answer(folder: Path, tokens: int) -> dict[str, Any]:
    """Loads, answers, and tells what it took."""
    import idefics

    began = time.perf_counter()
    asked = idefics.load(folder, device="cpu")
    loaded = time.perf_counter()
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
    first, times = 0.0, []
    stamp = time.perf_counter()
    for _ in asked.engine.stream(*_request(asked, photo, tokens)):
        now = time.perf_counter()
        first = first or now - stamp
        times.append(now - stamp)
    return {
        "load": loaded - began,
        "first_token": first,
        "seconds_per_token": (times[-1] - times[0]) / (len(times) - 1),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _request(asked: Any, photo: Image.Image, tokens: int) -> tuple[Any, Any]:
    from idefics.engine.sampling_params import sampling_params

    processor = asked.processor.adjusted(split=True)
    if processor.chat_template is None:
        prompt = f"{processor.image_token}What is in this photo?"
    else:
        content = [{"type": "image"}, {"type": "text", "text": "What is in this photo?"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor.inputs([prompt], [[photo]])
    return inputs, [sampling_params(asked.defaults, {"max_new_tokens": tokens, "min_new_tokens": tokens})]


def main() -> None:
    """Reads the command line; runs itself in a fresh process, so that the peak is that of the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(answer(arguments.folder, arguments.tokens)))
        return
    command = [sys.executable, __file__, str(arguments.folder), "--tokens", str(arguments.tokens), "--inside"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    weights = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    facts = {"weights": weights, "peak": found["peak"], "peak_at_most": PEAK, "within": found["peak"] <= PEAK}
    names = {"load": "load", "first_token": "first token, 5 sub-images", "seconds_per_token": "one more token"}
    cases = []
    for key, name in names.items():
        side = Side.of([found[key]])
        cases.append(Case(name=f"{name}, {weights / 1e9:.1f} GB", ours=side, facts=facts))
    print(f"peak of resident memory {found['peak'] / GIB:.2f} GiB (at most {PEAK / GIB:.0f})")
    report("large", cases)


if __name__ == "__main__":
    main()
