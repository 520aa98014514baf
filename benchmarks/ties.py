"""How often the engine in bfloat16 says something else than the plain path, and whether it is a tie each time.

    python benchmarks/ties.py        # four minutes on two cores

The embedded model is asked about drawings, and about noise, where it is never sure and may not stop; so is a first-generation
model of random weights. 16 questions at once in the engine as `idefics.load` gives it (weights packed, the fastest attention,
paged cache), and each alone on the plain path: weights as they were, attention by its definition, one prompt, a cache of its
own, one token after the other. Where the two part, the answer up to there is computed in float32 as well: it is a tie if the
two tokens' logits in float32 are no further apart than twice the rounding, which is the largest distance of bfloat16 logits on
the plain path from these, over the answer and the ten likeliest tokens. Exits with 1 if any difference is not a tie. How far
the engine's products and the plain ones are from float32 is told beside it, as root mean squares.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.config.presets import preset
from idefics.data.sources.drawings import conversation, draw_scene
from idefics.engine.prefill import Prefill
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.weights.create import create_checkpoint
from idefics.weights.files import EMBEDDED
from measure import saved

QUESTIONS, TOGETHER, TOKENS, LIKELIEST = 400, 16, 24, 10


@dataclass(frozen=True)
class Sides:
    """One checkpoint, three times.

    Attributes:
        engine: in bfloat16, as it is given to users.
        plain: in bfloat16, nothing packed, attention by its definition.
        exact: that in float32.
    """

    engine: Idefics
    plain: Idefics
    exact: Idefics

    @classmethod
    def of(cls, folder: Path) -> Sides:
        """Of a checkpoint."""
        plain, exact = (
            idefics.load(folder, dtype=dtype, device="cpu", packed=False, attention="reference")
            for dtype in ("bfloat16", "float32")
        )
        return cls(idefics.load(folder, dtype="bfloat16", device="cpu"), plain, exact)


@dataclass(frozen=True)
class Difference:
    """Where two answers part.

    Attributes:
        gap: of the two tokens' logits in float32.
        rounding: of the plain path's logits, at most.
        packed_error: root mean square of the distance of the packed model's logits from float32.
        plain_error: of the plain one's.
    """

    gap: float
    rounding: float
    packed_error: float
    plain_error: float

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
    """Pictures of nothing, about which a model is never sure."""
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


def compared(sides: Sides, every: list[ModelInputs], ends: tuple[int, ...]) -> tuple[int, list[Difference]]:
    """Tokens that the plain path wrote, and where the engine's answers part from them."""
    params = SamplingParams(max_new_tokens=TOKENS, eos_token_id=ends)
    engine = sides.engine.engine
    tokens, differences = 0, []
    for first in range(0, len(every), TOGETHER):
        batch = every[first : first + TOGETHER]
        answers: dict[int, list[int]] = {engine.add(inputs, params): [] for inputs in batch}
        while engine.busy:
            for event in engine.step():
                answers[event.row].append(event.id)
        for inputs, answer in zip(batch, answers.values(), strict=True):
            alone = plain(sides.plain, inputs, ends)
            tokens += len(alone)
            at = next((i for i, (a, b) in enumerate(zip(answer, alone, strict=False)) if a != b), None)
            if at is None:
                assert len(answer) == len(alone), "one answer is the other's beginning"
                continue
            packed_TV, plain_TV, exact_TV = (
                logits_along(side, inputs, alone[:at]) for side in (sides.engine, sides.plain, sides.exact)
            )
            likeliest = plain_TV.topk(LIKELIEST).indices
            differences.append(
                Difference(
                    gap=float((exact_TV[-1, alone[at]] - exact_TV[-1, answer[at]]).abs()),
                    rounding=float((plain_TV - exact_TV).gather(1, likeliest).abs().max()),
                    packed_error=float((packed_TV - exact_TV).square().mean().sqrt()),
                    plain_error=float((plain_TV - exact_TV).square().mean().sqrt()),
                )
            )
    return tokens, differences


def main() -> None:
    """Asks, compares, prints; the last line is JSON."""
    found, unexplained = {}, 0
    with TemporaryDirectory() as made:
        seeing = replace(preset("tiny-random-idefics"), alpha_initializer="ones")  # with gates closed no image would matter
        first = create_checkpoint(seeing, Path(made) / "first")
        embedded, random = Sides.of(EMBEDDED), Sides.of(first)
        for what, sides, every, ends in (
            ("drawings", embedded, drawings(embedded.engine, QUESTIONS), tuple(embedded.engine.defaults["eos_token_id"])),
            ("noise, beyond the end", embedded, noise(embedded.engine, QUESTIONS // 4), ()),
            ("first generation, random weights", random, noise(random.engine, QUESTIONS // 4), ()),
        ):
            tokens, differences = compared(sides, every, ends)
            ties = sum(difference.tie for difference in differences)
            print(
                f"{what}: {len(every)} answers, {tokens} tokens; {len(differences)} part from the plain path, {ties} at a tie"
            )
            differing = [asdict(difference) for difference in differences]
            found[what] = {"answers": len(every), "tokens": tokens, "ties": ties, "differences": differing}
            unexplained += len(differences) - ties
    saved("ties", found)
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
