"""Both sides on one device with the same random weights, and prompts for them: ids and pixels, no files, no text."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from idefics.config import Idefics2Config
from idefics.config.presets import preset
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.request import Token
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.linears.packing import pack, unpack
from idefics.linears.sites import named_weights
from idefics.model.base import VisionLanguageModel
from idefics.weights.families import build_on_meta, family_of
from idefics.weights.init import initialize
from vision import padded

__all__ = ["Prompt", "Sizes", "World", "exactly"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much each case does; `Sizes()` is the real thing, `TINY` tests the script."""

    photo: tuple[int, int] = (735, 980)
    mixed: tuple[tuple[int, int], ...] = ((735, 980), (980, 735), (480, 640), (551, 980), (448, 448))
    prompt: int = 2048
    context: int = 512
    batches: tuple[int, ...] = (1, 8, 64)
    steps: int = 32
    words: int = 60
    answer: int = 24
    together: int = 16
    saturated: int = 256
    saturated_tokens: int = 128
    rounds: int = 3


TINY = Sizes(
    photo=(42, 56), mixed=((42, 56), (56, 42), (28, 28)), prompt=48, context=24, batches=(1, 2), steps=3, words=9, answer=4,
    together=3, saturated=4, saturated_tokens=5, rounds=1,
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One request: ids with every image's tokens in place, and normalised pixels of each image."""

    ids: list[int]
    images: list[Tensor]

    def inputs(self) -> ModelInputs:
        """As the engine takes it."""
        ids_1T = torch.tensor([self.ids])
        return ModelInputs(
            input_ids_BT=ids_1T,
            attention_mask_BT=torch.ones_like(ids_1T),
            images_CHW=tuple(self.images),
            images_per_row=(len(self.images),),
        )


def exactly(tokens: int) -> SamplingParams:
    """Greedy, so many tokens."""
    return SamplingParams(max_new_tokens=tokens)


@dataclass(eq=False)
class World:
    """What is measured, and where.

    Attributes:
        tiny: sizes that a CPU computes in seconds.
        peer: whether transformers takes part.
    """

    tiny: bool
    peer: bool = True
    dtype: torch.dtype = torch.bfloat16
    numbers: Any = field(default_factory=count)

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.sizes = TINY if self.tiny else Sizes()
        self.config = self._config()
        made = build_on_meta(self.config).to(self.dtype).to_empty(device=self.device).eval()
        initialize(made, seed=0)
        self.model: VisionLanguageModel = made
        self.theirs: Any = self._reference() if self.peer else None
        pack(made, reorder=False)  # as `idefics.load` does on a GPU

    def _config(self) -> Idefics2Config:
        whole = preset("tiny-random-idefics2" if self.tiny else "idefics2-8b")
        assert isinstance(whole, Idefics2Config)
        return whole

    def _reference(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
        kept = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                made = transformers.Idefics2ForConditionalGeneration(transformers.Idefics2Config(**self.config.to_dict()))
        finally:
            torch.set_default_dtype(kept)
        made.set_attn_implementation("sdpa")
        ours, table = dict(self.model.named_parameters(remove_duplicate=False)), family_of(self.config).table
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.copy_(ours[str(table.ours(name))])
        return made.eval()

    def cast(self, dtype: torch.dtype) -> None:
        """Turns both sides to another dtype."""
        self.dtype = dtype
        pack(unpack(self.model).to(dtype), reorder=False)
        if self.theirs is not None:
            self.theirs.to(dtype)

    def engine(self, *, tokens: int, rows: int = 16, at_once: int = 4096) -> Engine:
        """An engine whose cache holds so many tokens in all."""
        text, width = self.config.text_config, self.dtype.itemsize
        each = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * width
        blocks = -(-tokens // 16) + rows  # the last block of each answer is not full
        return Engine(self.model, Limits(rows=rows, tokens=max(at_once, rows), cache_bytes=16 * each * blocks))

    def image(self, height: int, width: int) -> Tensor:
        """Noise that nobody has seen before."""
        generator = torch.Generator().manual_seed(next(self.numbers))
        return torch.randn(3, height, width, generator=generator).to(self.dtype)

    def prompt(self, words: int, sizes: Sequence[tuple[int, int]] = ()) -> Prompt:
        """Images, then words that nobody has said before."""
        generator = torch.Generator().manual_seed(next(self.numbers))
        said = torch.randint(100, self.config.text_config.vocab_size - 10, (words,), generator=generator).tolist()
        latents = [self.config.image_token_id] * self.config.perceiver_config.resampler_n_latents
        ids = [1]
        for _ in sizes:
            ids += [10, *latents, 10]
        return Prompt(ids + said, [self.image(*size) for size in sizes])

    def answer(self, engine: Engine, prompts: Sequence[Prompt], tokens: int) -> list[list[int]]:
        """Our tokens for each prompt, all at once."""
        numbers = [engine.add(prompt.inputs(), exactly(tokens)) for prompt in prompts]
        said: dict[int, list[int]] = {number: [] for number in numbers}
        while engine.busy:
            for event in engine.step():
                assert isinstance(event, Token), event
                said[event.row].append(event.id)
        return [said[number] for number in numbers]

    def their_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What their processor would hand over, on the CPU: one batch, ids padded at the left, images to the largest."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
        inputs = {"input_ids": ids, "attention_mask": mask}
        images = [image for prompt in prompts for image in prompt.images]
        if images:
            assert len({len(prompt.images) for prompt in prompts}) == 1, "rows of as many images each"
            inputs |= {name: value.unflatten(1, (len(prompts), -1))[0] for name, value in padded(images).items()}
        return inputs

    @torch.inference_mode()
    def their_answer(self, inputs: dict[str, Tensor], tokens: int) -> list[list[int]]:
        """Theirs, to `their_inputs`: padding is their processor's work and not measured, as preparing is not for ours."""
        inputs, width = {name: value.to(self.device) for name, value in inputs.items()}, inputs["input_ids"].shape[1]
        out = self.theirs.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return [row[width:].tolist() for row in out]

    def weight_bytes(self, *, decoder_only: bool = False) -> int:
        """Bytes of all weights, or of those that are read for every token."""
        read = ("text_model.layers.", "lm_head.") if decoder_only else ("",)
        return sum(weight.nbytes for name, weight in named_weights(self.model) if name.startswith(read))

    def key_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        text = self.config.text_config
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.dtype.itemsize

    def peak(self, run: Callable[[], Any]) -> int | None:
        """Bytes allocated on the GPU at most while `run` runs, without what the other side holds; None on a CPU."""
        if self.device.type != "cuda":
            run()
            return None
        gc.collect()  # an engine of an earlier case may hang on a cycle, with its cache
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        others = 0 if self.theirs is None else sum(parameter.nbytes for parameter in self.theirs.parameters())
        return torch.cuda.max_memory_allocated() - others

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds."""
        self.settle()
        began = time.perf_counter()
        run()
        self.settle()
        return time.perf_counter() - began

    def settle(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
