"""From nothing to something: the help, an answer of the command, the first token; each in a fresh process.

python benchmarks/start.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from measure import compare, report

OURS = """
import idefics
print(next(iter(idefics.load(device="cpu").stream("What is this?", images={picture!r}, max_new_tokens=1))))
"""
THEIRS = """
import torch, transformers
from PIL import Image
from idefics.weights.files import EMBEDDED
processor = transformers.AutoProcessor.from_pretrained(EMBEDDED)
model = transformers.AutoModelForImageTextToText.from_pretrained(EMBEDDED, dtype=torch.bfloat16)
content = [{{"type": "image"}}, {{"type": "text", "text": "What is this?"}}]
prompt = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
inputs = processor(text=prompt, images=[Image.open({picture!r})], return_tensors="pt")
inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=1)))
"""
HELP, ANSWER, FIRST_TOKEN = 0.3, 2.0, 3.0  # seconds at most


def python(*arguments: str) -> None:
    """Runs an interpreter to its end."""
    # Compiled once, as for anybody: a machine that keeps no bytecode compiles it anew each time, half a second of it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


def main() -> None:
    """Measures and reports; the targets are seconds, so they are among the facts."""
    from idefics.weights.files import EMBEDDED

    picture = str(EMBEDDED.parent / "demo" / "thing.png")
    cases = [
        compare("idefics --help", lambda: python("-m", "idefics", "--help"), None, rounds=7, seconds_at_most=HELP),
        compare(
            "idefics generate, embedded model",
            lambda: python("-m", "idefics", "generate", "--image", picture, "What is this?"),
            None,
            rounds=7,
            seconds_at_most=ANSWER,
        ),
        compare(
            "embedded model, first token",
            lambda: python("-c", OURS.format(picture=picture)),
            lambda: python("-c", THEIRS.format(picture=picture)),
            rounds=5,
            seconds_at_most=FIRST_TOKEN,
        ),
    ]
    cases = [replace(case, facts={**case.facts, "within": case.ours.median <= case.facts["seconds_at_most"]}) for case in cases]
    report("start", cases)


if __name__ == "__main__":
    main()
