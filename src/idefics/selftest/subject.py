"""The model on the bench: its parts, and prompts and images to try it with, each computed once.

Letters: B rows, T tokens, D hidden size, V vocabulary, N images, L latents, C x H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from idefics.api import Idefics
from idefics.engine.intake import unpadded
from idefics.engine.prefill import Prefill
from idefics.inputs import ModelInputs, pixels_of
from idefics.model.nearness import distance, tolerance
from idefics.model.sight import Sight
from idefics.selftest.dictation import Dictated, dictate, engine_for
from idefics.selftest.pictures import draw

__all__ = ["NEW_TOKENS", "TEXTS", "TURN", "Run", "Subject", "continued"]

TEXTS = ("No picture here.", "{i}What is in this picture?", "First{i}and then{i}are they the same?")
PICTURES = ((), (0,), (0, 1))
PICTURES_ANEW = (2, 0)
"""Of the last prompt once more: the same ids, and in the first picture's place one of its size, so that the first is second."""

NEW_TOKENS = 6
"""Tokens appended to every prompt, so that continuing is tested as well as reading."""

TURN = 3
"""Of these, the first answer's; a second prompt begins with the one after them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One prompt through the model, whole, without padding and without cache: what everything else is compared with.

    Attributes:
        ids_T: the prompt and the appended tokens.
        prompt: how many of them are the prompt's.
        embedded_TD: what the decoder was given, latents in place.
        hidden_TD: what it made of it.
    """

    ids_T: Tensor
    prompt: int
    embedded_TD: Tensor
    hidden_TD: Tensor


@dataclass(frozen=True, kw_only=True)
class Batched:
    """All prompts together through `Prefill`, padded, over a cache made to measure: as beams and scores are computed.

    Attributes:
        logits_BTV: after the prompt and after each appended token.
        positions_BT: as the model was told them, prompt and appended tokens.
    """

    logits_BTV: Tensor
    positions_BT: Tensor


class Subject:
    """A loaded model with material to test it on.

    Args:
        loaded: what `idefics.load` returned.
        graphs: as of `Limits`, for its engines.

    Attributes:
        model, processor, defaults, config: of it.
        allowed: see `tolerance`.
        small: the processor, for images of a few patches where the model takes any, to be cheap on the largest one.
        pictures: three drawings; the first and the last are of one size.
    """

    def __init__(self, loaded: Idefics, *, graphs: bool | None = None) -> None:
        self.loaded = loaded
        self.graphs = graphs
        self.model = loaded.model
        self.processor = loaded.processor
        self.defaults: Mapping[str, Any] = loaded.defaults
        self.config = loaded.model.config
        self.allowed = tolerance(self.config, self.model.dtype)
        self.small = self.processor.with_small_images(self.config)
        longest = max(self.small.image_processor.processed_sizes(1000, 700)[-1])
        patch = self.config.vision_config.patch_size
        large = (2 * longest, max(2 * longest * 5 // 7, patch))
        lesser = (max(longest * 4 // 7 + 1, patch), max(longest * 6 // 7, patch))
        self.pictures: tuple[Image.Image, ...] = (draw(*large, seed=1), draw(*lesser, seed=2), draw(*large, seed=3))

    @property
    def device(self) -> torch.device:
        """Where ids go in."""
        return self.model.device

    @property
    def crossed(self) -> bool:
        """Whether tokens look at images apart from the text, instead of having them among themselves."""
        return self.batch.seen_BT is not None

    @cached_property
    def any_size(self) -> bool:
        """Whether images keep their shape on the way to the model."""
        images = self.small.image_processor
        return images.processed_sizes(200, 100)[-1] != images.processed_sizes(100, 200)[-1]

    def inputs(self, texts: Sequence[str], rows: Sequence[Sequence[Image.Image]], *, split: bool = False) -> ModelInputs:
        """Inputs of prompts in which `{i}` stands for an image."""
        prompts = [text.replace("{i}", self.processor.image_token) for text in texts]
        return (self.small.adjusted(split=split) if self.any_size else self.small).inputs(prompts, rows)

    @cached_property
    def batch(self) -> ModelInputs:
        """A row without image, one with one, one with two; padded on the left."""
        return self.inputs(TEXTS, [[self.pictures[i] for i in row] for row in PICTURES])

    @cached_property
    def new_ids(self) -> list[int]:
        """The tokens that are appended: ordinary ones, each different."""
        ids = self.processor.tokenizer.encode("blue 3 on red 7 yes or no", add_special_tokens=False)
        return ids[-NEW_TOKENS:]

    @cached_property
    def pixels(self) -> tuple[Tensor, ...]:
        """The pictures' pixels, on the device."""
        found = self.inputs([3 * "{i}"], [self.pictures]).images_CHW
        return tuple(pixels_of(image.to(self.device)) for image in found)

    def whole(self, row: int) -> ModelInputs:
        """A prompt without padding, and the appended tokens."""
        return continued(self.row(row), self.new_ids).to(self.device)

    def run(self, row: int, latents_NLD: Tensor | None) -> Run:
        """One prompt of the batch, alone, with these latents."""
        inputs = self.whole(row)
        seen: list[Tensor] = []

        def spy(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["x_BTD"])[0])

        handle = self.model.text_model.register_forward_pre_hook(spy, with_kwargs=True)
        try:
            ids_1T = inputs.input_ids_BT
            positions_BT = torch.arange(ids_1T.shape[1], device=self.device)[None]
            images = None if latents_NLD is None else self.model.see(inputs, latents_NLD=latents_NLD)
            hidden_BTD = self.model(ids_1T, positions_BT=positions_BT, seen=images)
        finally:
            handle.remove()
        prompt = ids_1T.shape[1] - len(self.new_ids)
        return Run(ids_T=ids_1T[0], prompt=prompt, embedded_TD=seen[0], hidden_TD=hidden_BTD[0])

    def latents(self, row: int) -> Tensor | None:
        """The latents of a row's pictures, each encoded alone."""
        return torch.cat([self.alone[i] for i in PICTURES[row]]) if PICTURES[row] else None

    def seen(self, row: int, start: int, end: int) -> Sight | None:
        """What tokens `start` to `end` of a prompt with pictures draw on; an image among them may be cut."""
        latents_NLD = self.latents(row)
        assert latents_NLD is not None, "a prompt without pictures"
        sources_1T = self.model.sources(self.whole(row))
        return self.model.sight(self.model.project(latents_NLD), sources_1T[:, start:end])

    @cached_property
    def alone(self) -> tuple[Tensor, ...]:
        """Each picture's latents (1, L, D), encoded alone."""
        return tuple(self.model.encode_images([image]) for image in self.pixels)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every prompt of the batch, alone."""
        return tuple(self.run(row, self.latents(row)) for row in range(len(TEXTS)))

    @cached_property
    def asked(self) -> tuple[ModelInputs, ...]:
        """What an engine is asked: the prompts of the batch, and before the last the same with `PICTURES_ANEW`."""
        anew = self.inputs([TEXTS[-1]], [[self.pictures[i] for i in PICTURES_ANEW]])
        return self.row(0), self.row(1), anew, self.row(2)

    @cached_property
    def asked_runs(self) -> tuple[Run, ...]:
        """Of what an engine is asked, each alone."""
        anew = self.run(len(TEXTS) - 1, torch.cat([self.alone[i] for i in PICTURES_ANEW]))
        return *self.runs[:2], anew, self.runs[2]

    @cached_property
    def answered(self) -> tuple[Dictated, Dictated]:
        """All that is asked, together through one engine; then a second turn of each.

        The first answers are the first `TURN` of the appended tokens. The second prompts are the first ones, these answers
        and one token; the rest are the second answers.
        """
        turns = [continued(prompt, self.new_ids[: TURN + 1]) for prompt in self.asked]
        lengths = [turn.input_ids_BT.shape[1] + NEW_TOKENS for turn in turns]
        engine = engine_for(self.model, lengths, graphs=self.graphs)
        return dictate(engine, self.asked, self.new_ids[:TURN]), dictate(engine, turns, self.new_ids[TURN + 1 :])

    @cached_property
    def batched(self) -> Batched:
        """The batch: prompts, one token, then the rest at once."""
        with Positions(self.model) as spy:
            rows = len(TEXTS)
            prefill = Prefill(self.model, self.batch, rows=range(rows), rooms=[len(self.new_ids)] * rows)
            logits = [prefill.logits_RV[:, None]]
            new_BT = torch.tensor([self.new_ids] * rows, device=self.device)
            logits.append(prefill.step(new_BT[:, :1])[:, None])
            logits.append(prefill.extend(new_BT[:, 1:]))
        return Batched(logits_BTV=torch.cat(logits, dim=1), positions_BT=torch.cat(spy.seen, dim=1))

    @cached_property
    def noise(self) -> float:
        """How far the same computation lies from itself when repeated; 0 where kernels are deterministic."""
        again = self.run(1, self.latents(1))
        pixels = self.model.encode_images(self.pixels), self.model.encode_images(self.pixels)
        return max(distance(again.hidden_TD, self.runs[1].hidden_TD), distance(*pixels))

    @cached_property
    def least(self) -> float:
        """What counts as a difference: repeating a computation gives less, a dead or isolated path gives none at all."""
        return max(4 * self.noise, torch.finfo(self.model.dtype).eps / 64)

    def row(self, row: int) -> ModelInputs:
        """One prompt with its images and no padding."""
        return unpadded(self.batch.row(row))


def continued(inputs: ModelInputs, ids: Sequence[int]) -> ModelInputs:
    """One row without padding and what follows it, which looks at what its last token looks at."""
    new_1T = torch.tensor([list(ids)])
    seen_1T = inputs.seen_BT
    if seen_1T is not None:
        seen_1T = torch.cat((seen_1T, seen_1T[:, -1:].expand_as(new_1T)), dim=1)
    ids_1T = torch.cat((inputs.input_ids_BT, new_1T), dim=1)
    return replace(inputs, input_ids_BT=ids_1T, attention_mask_BT=torch.ones_like(ids_1T), seen_BT=seen_1T)


class Positions:
    """Notes the positions that a model is called with, as long as the context is open."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[Tensor] = []
        self._model = model

    def __enter__(self) -> Positions:
        def note(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.seen.append(kwargs["positions_BT"].detach().cpu())

        self._handle = self._model.register_forward_pre_hook(note, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
