"""How fast a loaded model is on this machine, and how far from what the machine can do at best.

Every piece of work is done several times on pictures that were not seen before, and the median counts. Beside it stands the
machine's limit for the same work: bytes of weights and cache that must be read over how fast memory was read just before,
or operations of the weights' matrix products (attention's own are not counted) over how fast matrices were multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from idefics.api import Idefics
from idefics.engine.request import Ended
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import OptionError
from idefics.inputs import ModelInputs
from idefics.linears.packing import finish_packing
from idefics.machine.ceilings import Ceilings, ceilings, seconds_of
from idefics.machine.progress import Steps
from idefics.weights.footprint import kv_bytes_per_token, parameter_counts

__all__ = ["Bed", "Work", "bench"]

QUESTIONS = ("What is in this picture?", "A thing.", "And what else?")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of work.

    Attributes:
        name: what was done.
        seconds: the median.
        least: seconds of the fastest run.
        most: seconds of the slowest.
        rate: `unit` done per second.
        unit: images, tokens, answers or requests.
        limit: seconds at the machine's ceiling; None where none is known.
    """

    name: str
    seconds: float
    least: float
    most: float
    rate: float
    unit: str
    limit: float | None = None


def bench(
    loaded: Idefics,
    *,
    image: tuple[int, int] = (1280, 960),
    prompt: int = 256,
    tokens: int = 32,
    together: int = 16,
    rounds: int = 5,
    progress: Steps | None = None,
) -> tuple[Ceilings, list[Work]]:
    """Measures a model.

    Args:
        loaded: what `idefics.load` returned.
        image: width and height of pictures in pixels.
        prompt: tokens of text that are read.
        tokens: written per answer, at least 2.
        together: requests at once.
        rounds: repetitions of everything.
        progress: told, before each: its name, how many are done, how many there are.

    Returns:
        The ceilings, and the work in the order of a request's life.

    Raises:
        OptionError: a number is too small to measure anything.
        InputError: prompt and answer do not fit the model.
    """
    numbers = {"image width": image[0], "image height": image[1], "prompt": prompt, "together": together, "rounds": rounds}
    for name, value in {**numbers, "tokens": tokens - 1}.items():
        if value < 1:
            raise OptionError(f"{name} is too small to measure anything")
    bed = Bed(loaded, image=image, prompt=prompt, tokens=tokens, rounds=rounds)
    steps: dict[str, Callable[[], Work]] = {
        "prepare an image": bed.prepare,
        "encode an image": bed.encode,
        f"read {prompt} tokens": bed.read,
        f"write {tokens} tokens": lambda: bed.write(1),
        f"write {tokens} tokens, {together} answers": lambda: bed.write(together),
        "first token of a first turn": bed.first_turn,
        "first token of a second turn": bed.second_turn,
        f"{together} requests with an image": lambda: bed.serve(together),
    }
    done = []
    for number, (name, measure) in enumerate(steps.items()):
        if progress is not None:
            progress(name, number, len(steps))
        work = measure()
        done.append(Work(**{**vars(work), "name": name}))
    return bed.reached, done


class Bed:
    """A model, pictures nobody has seen before, and a clock."""

    def __init__(self, loaded: Idefics, *, image: tuple[int, int], prompt: int, tokens: int, rounds: int) -> None:
        self.loaded = loaded
        self.model = finish_packing(loaded.model)
        self.image, self.prompt, self.tokens, self.rounds = image, prompt, tokens, rounds
        self.reached = ceilings(self.model.device, [self.model.dtype])
        self._numbers = count()
        self._parameters = parameter_counts(self.model.config)

    def prepare(self) -> Work:
        """A decoded picture to what the model takes."""
        return self._work(self._alone, self._picture, amount=1, unit="images")

    def encode(self) -> Work:
        """What the model takes to what its decoder looks at."""
        patch = self.model.config.vision_config.patch_size
        seen = self.loaded.processor.image_processor.processed_sizes(*self.image)
        patches = sum((width // patch) * (height // patch) for width, height in seen)
        limit = self._bound(operations=2 * patches * self._parameters["vision"])

        @torch.inference_mode()
        def run(inputs: ModelInputs) -> None:
            self.model.project(self.model.encode_images(inputs.images_CHW))

        return self._work(run, lambda: self._alone(self._picture()), amount=1, unit="images", limit=limit)

    def read(self) -> Work:
        """A prompt of text to its first token."""
        matrices = self._parameters["text"] - self._table
        limit = self._bound(operations=2 * self.prompt * matrices, moved=matrices * self.model.dtype.itemsize)
        return self._work(lambda p: self._run([p], 1), self._words, amount=self.prompt, unit="tokens", limit=limit)

    def write(self, answers: int) -> Work:
        """Tokens one after the other, to prompts that are in the cache: for each, every matrix is read once for all answers,
        and what is cached for each.
        """
        steps = self.tokens
        cached = answers * (self.prompt + steps / 2) * kv_bytes_per_token(self.model.config, self.model.dtype)
        matrices = self._parameters["text"]  # the embedding is not read, the head of the same size is
        moved = steps * (matrices * self.model.dtype.itemsize + cached)
        limit = self._bound(moved=moved, operations=2 * steps * answers * matrices)

        def fresh() -> list[ModelInputs]:
            prompts = [self._words() for _ in range(answers)]
            self._run(prompts, 1)
            return prompts

        return self._work(lambda p: self._run(p, steps), fresh, amount=steps * answers, unit="tokens", limit=limit)

    def first_turn(self) -> Work:
        """A question about a picture, from its pixels to the first token of the answer."""
        return self._work(lambda p: self._run([self._asked(1, p)], 1), self._picture, amount=1, unit="answers")

    def second_turn(self) -> Work:
        """The next question about it: the picture is encoded, and the first turn is in the cache."""

        def fresh() -> Image.Image:
            picture = self._picture()
            self._run([self._asked(1, picture)], self.tokens)
            return picture

        return self._work(lambda p: self._run([self._asked(3, p)], 1), fresh, amount=1, unit="answers")

    def serve(self, requests: int) -> Work:
        """Questions about different pictures, all at once, from their pixels to the last token."""
        return self._work(
            lambda pictures: self._run([self._asked(1, picture) for picture in pictures], self.tokens),
            lambda: [self._picture() for _ in range(requests)],
            amount=requests,
            unit="requests",
        )

    @property
    def _table(self) -> int:
        """Elements of the embedding, of which a pass reads a few rows only; the head is as large."""
        text = self.model.config.text_config
        return text.vocab_size * text.hidden_size

    def _bound(self, **work: float) -> float:
        return self.reached.bound(dtype=self.model.dtype, **work)

    def _work(
        self, run: Callable[[Any], Any], fresh: Callable[[], Any], *, amount: int, unit: str, limit: float | None = None
    ) -> Work:
        """Runs something on fresh material each time; the first time warms up."""
        times = []
        for _ in range(self.rounds + 1):
            given = fresh()
            times.append(seconds_of(partial(run, given), self.model.device))
        least, middle, most = min(times[1:]), median(times[1:]), max(times[1:])
        return Work(name="", seconds=middle, least=least, most=most, rate=amount / middle, unit=unit, limit=limit)

    def _picture(self) -> Image.Image:
        """Smooth noise."""
        coarse = tuple(side // 16 + 1 for side in self.image[::-1])
        noise = np.random.default_rng(next(self._numbers)).integers(0, 256, (*coarse, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize(self.image, Image.Resampling.BICUBIC)

    def _alone(self, picture: Image.Image) -> ModelInputs:
        return self.loaded.processor.inputs([self.loaded.processor.image_token], [[picture]])

    def _asked(self, turns: int, picture: Image.Image) -> ModelInputs:
        """Questions, and answers between them, about one picture."""
        processor = self.loaded.processor
        if processor.chat_template is None:
            return processor.inputs([processor.image_token + "\n".join(QUESTIONS[:turns])], [[picture]])
        messages: list[dict[str, Any]] = []
        for place, text in enumerate(QUESTIONS[:turns]):
            shown = [{"type": "image"}] if place == 0 else []
            role = "assistant" if place % 2 else "user"
            messages.append({"role": role, "content": [*shown, {"type": "text", "text": text}]})
        return processor.inputs([processor.apply_chat_template(messages, add_generation_prompt=True)], [[picture]])

    def _words(self) -> ModelInputs:
        """Random ordinary tokens."""
        most = min(1000, self.model.config.text_config.vocab_size // 2)
        generator = torch.Generator().manual_seed(next(self._numbers))
        ids_1T = torch.randint(10, most, (1, self.prompt), generator=generator)
        return ModelInputs(input_ids_BT=ids_1T, attention_mask_BT=torch.ones_like(ids_1T), images_per_row=(0,))

    def _run(self, prompts: Sequence[ModelInputs], tokens: int) -> None:
        """Answers of exactly so many tokens, to these and to what was begun before."""
        for inputs in prompts:
            self.loaded.engine.add(inputs, SamplingParams(max_new_tokens=tokens))
        while self.loaded.engine.busy:
            for event in self.loaded.engine.step():
                if isinstance(event, Ended):
                    raise event.error or OptionError(f"a request was {event.finish}")
