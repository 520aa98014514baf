"""How often the engine in bfloat16 says something else than the plain path, and whether it is a tie each time.

    python benchmarks/ties.py

The embedded model is asked about drawings, and about noise, where it is never sure and may not stop: 16 questions at once in
the engine, and each alone on the plain path: one prompt, a cache of its own, one token after the other. Where the two part,
the two tokens' logits are compared: a tie is a gap no larger than twice the rounding there, measured as the distance of
bfloat16 logits from those of float32 weights and activations after the very same tokens. Exits with 1 if any difference is
not a tie.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.data.drawings import conversation, draw_scene
from idefics.engine.prefill import Prefill
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs

QUESTIONS, TOGETHER, TOKENS = 400, 16, 24


@dataclass(frozen=True)
class Difference:
    """Where two answers part: the gap of the two tokens' logits, and the rounding there."""

    gap: float
    rounding: float

    @property
    def tie(self) -> bool:
        """Whether rounding explains it."""
        return self.gap <= 2 * self.rounding


def drawings(asked: Idefics, many: int) -> list[ModelInputs]:
    """Questions about drawings of all sizes, one or two in each."""
    rng = np.random.default_rng(2024)
    made = []
    for number in range(many):
        shown = [
            draw_scene(rng, width=int(rng.integers(84, 169)), height=int(rng.integers(84, 169))) for _ in range(1 + number % 2)
        ]
        turn = conversation(rng, [drawing.scene for drawing in shown], turns=1)[0]
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": turn.question}]
        text = asked.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        made.append(asked.processor.inputs([text], [[drawing.image for drawing in shown]]))
    return made


def noise(asked: Idefics, many: int) -> list[ModelInputs]:
    """Pictures of nothing, about which the model is never sure, and answers that may not end."""
    made = []
    for number in range(many):
        levels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(levels).resize((168, 126), Image.Resampling.BICUBIC)
        content = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
        text = asked.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        made.append(asked.processor.inputs([text], [[picture]]))
    return made


@torch.inference_mode()
def logits_along(asked: Idefics, inputs: ModelInputs, ids: list[int]) -> torch.Tensor:
    """Logits after the prompt and after each of these tokens (1 + tokens, V), float32."""
    prefill = Prefill(asked.model, inputs, rows=[0], rooms=[len(ids) + 1])
    found = [prefill.logits_RV]
    for token in ids:
        found.append(prefill.step(torch.tensor([[token]])))
    return torch.cat(found)


@torch.inference_mode()
def plain(asked: Idefics, inputs: ModelInputs, ends: tuple[int, ...]) -> list[int]:
    """The likeliest tokens, one after the other."""
    ids: list[int] = []
    prefill = Prefill(asked.model, inputs, rows=[0], rooms=[TOKENS])
    logits_1V = prefill.logits_RV
    while True:
        ids.append(int(logits_1V[0].argmax()))
        if ids[-1] in ends or len(ids) == TOKENS:
            return ids
        logits_1V = prefill.step(torch.tensor([ids[-1:]]))


def compared(half: Idefics, full: Idefics, every: list[ModelInputs], ends: tuple[int, ...]) -> tuple[int, list[Difference]]:
    """Tokens that the plain path wrote, and where the engine's answers part from them."""
    params = SamplingParams(max_new_tokens=TOKENS, eos_token_id=ends)
    tokens, differences = 0, []
    for first in range(0, len(every), TOGETHER):
        batch = every[first : first + TOGETHER]
        answers: dict[int, list[int]] = {half.engine.add(inputs, params): [] for inputs in batch}
        while half.engine.busy:
            for event in half.engine.step():
                answers[event.row].append(event.id)
        for inputs, answer in zip(batch, answers.values(), strict=True):
            alone = plain(half, inputs, ends)
            tokens += len(alone)
            at = next((i for i, (a, b) in enumerate(zip(answer, alone, strict=False)) if a != b), None)
            if at is None:
                assert len(answer) == len(alone), "one answer is the other's beginning"
                continue
            rounded, exact = logits_along(half, inputs, alone[:at])[-1], logits_along(full, inputs, alone[:at])[-1]
            pair = torch.tensor([answer[at], alone[at]])
            gap = float((rounded[pair[1]] - rounded[pair[0]]).abs())
            differences.append(Difference(gap, float((rounded - exact)[pair].abs().max())))
    return tokens, differences


def main() -> None:
    """Asks, compares, prints; the last line is JSON."""
    half, full = (idefics.load(dtype=dtype, device="cpu") for dtype in ("bfloat16", "float32"))
    found, unexplained = {}, 0
    for what, every, ends in (
        ("drawings", drawings(half, QUESTIONS), tuple(half.defaults["eos_token_id"])),
        ("noise, beyond the end", noise(half, QUESTIONS // 4), ()),
    ):
        tokens, differences = compared(half, full, every, ends)
        ties = sum(difference.tie for difference in differences)
        print(f"{what}: {len(every)} answers, {tokens} tokens; {len(differences)} part from the plain path, {ties} at a tie")
        found[what] = {"answers": len(every), "tokens": tokens, "ties": ties, "differences": [vars(d) for d in differences]}
        unexplained += len(differences) - ties
    print(json.dumps(found))
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
