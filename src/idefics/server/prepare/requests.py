"""A request in no API's words, and what the engine gets of it. Everything that takes time runs in worker threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch

from idefics.engine.sampling_params import SamplingParams, sampling_params
from idefics.errors import ImageError
from idefics.inputs import ModelInputs, image_digest
from idefics.processor.base import Processor
from idefics.processor.literal import MARK, unmarked
from idefics.processor.prepared import PreparedImage
from idefics.server.errors import Invalid, NoRoom, TooLong
from idefics.server.images.budget import PixelBudget
from idefics.server.images.decoders import Decoders
from idefics.server.images.source import ImageSource
from idefics.server.limits import ServerLimits
from idefics.server.prepare.compilers import Compilers
from idefics.server.prepare.grammars import Grammar
from idefics.server.prepare.prompts import Prompt, prompt_of_messages
from idefics.server.processes.crew import Crew

__all__ = ["Asked", "Prepared", "Preparer", "Tokenized", "Words"]

Result = TypeVar("Result")

# Whose tokens are made in less time than it takes to hand them over.
BRIEF_TEXT = 1_000
BRIEF_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the API that was asked calls things, for refusals that its clients understand.

    Attributes:
        prompt: text and images.
        new_tokens: how many an answer may have.
    """

    prompt: str = "inputs"
    new_tokens: str = "max_new_tokens"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a client wants.

    Attributes:
        prompt: text and images.
        words: of the API.
        options: of `SamplingParams`, without `stop`; what is left out follows the checkpoint.
        stop: strings that end an answer.
        keep_stop: whether a stop string is part of the answer that it ends.
        appended: whether answers are added to the prompt's text, so that the space before their first word belongs to them.
        grammar: what answers must look like.
        truncate: keep this many of the prompt's last tokens.
        split: cut images in sub-images; None follows the checkpoint.
        max_image_size: longest edge of images in pixels; None follows the checkpoint.
    """

    prompt: Prompt
    words: Words = field(default_factory=Words)
    options: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    appended: bool = False
    grammar: Grammar | None = None
    truncate: int | None = None
    split: bool | None = None
    max_image_size: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What the engine gets.

    Attributes:
        asked: the request.
        inputs: one row.
        params: with every default filled in.
        stop_ids: ids that end an answer because a stop string is that token.
        stop: the other stop strings.
        prompt_tokens: images included.
        new_tokens: at most.
        image_bytes: encoded; those of an image that stands in several places once.
        seconds: that preparing took.
    """

    asked: Asked
    inputs: ModelInputs
    params: SamplingParams
    stop_ids: frozenset[int]
    stop: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    image_bytes: int
    seconds: float


@dataclass(frozen=True)
class Tokenized:
    """One token of a text: its id and where it stands."""

    id: int
    text: str
    start: int
    stop: int


class Preparer:
    """Prepares requests.

    Args:
        processor: of the model.
        defaults: content of the checkpoint's `generation_config.json`.
        positions: of the model.
        longest_image: edge in pixels that the model was made for.
        limits: of the server.
        images: where images come from.
        decoders: where they are decoded; closed by whoever made them.
        compilers: where grammars are tried; likewise.
    """

    def __init__(
        self,
        processor: Processor,
        defaults: Mapping[str, Any],
        *,
        positions: int,
        longest_image: int,
        limits: ServerLimits,
        images: ImageSource,
        decoders: Decoders,
        compilers: Compilers,
    ) -> None:
        self.processor = processor
        self._defaults = defaults
        self._positions = positions
        self._longest_image = longest_image
        self._limits = limits
        self._images = images
        # A text of more characters than this cannot fit, whatever they are, and need not be read to know it.
        self._characters = positions * max(map(len, processor.tokenizer.backend.get_vocab()))
        self._crew = Crew(limits.workers, "prepare")
        self._decoders = decoders
        self._compilers = compilers
        self._budget = PixelBudget(limits.held_pixel_bytes)

    async def prepare(self, asked: Asked) -> Prepared:
        """Fetches images and makes inputs.

        Raises:
            InputError: the request cannot be answered as it is.
        """
        began = time.monotonic()
        self._check(asked)
        options = dict(asked.options)
        special, stop = self._stops(asked.stop)
        params = sampling_params(self._defaults, options)
        params = replace(params, eos_token_id=(*params.eos_token_id, *(i for i in special if i not in params.eos_token_id)))
        references = asked.prompt.references
        if references:
            # Tokens do not depend on pixels: what cannot fit is refused before an image costs anything.
            brief = len(asked.prompt.text) <= BRIEF_TEXT and len(references) <= BRIEF_IMAGES
            await self.in_worker(lambda: self._check_tokens(asked, params), brief=brief)
        if asked.grammar is not None:
            await self._compilers.check(asked.grammar, params.eos_token_id)
        async with self._images.fetched(references) as fetched:
            ready, image_bytes = await self._ready(references, fetched, self._adjusted(asked))
        inputs = await self.in_worker(lambda: self._make(asked, ready))
        tokens = inputs.input_ids_BT.shape[1]
        return Prepared(
            asked=asked,
            inputs=inputs,
            params=params,
            stop_ids=frozenset(special),
            stop=stop,
            prompt_tokens=tokens,
            new_tokens=self._room(asked.words, params, tokens),
            image_bytes=image_bytes,
            seconds=time.monotonic() - began,
        )

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """The prompt of a chat of no more messages than could fit.

        Raises:
            Invalid: there are more.
            InputError: the messages are unusable.
        """
        if len(messages) > self._positions:
            raise Invalid(f"{len(messages)} messages do not fit {self._positions} tokens", param="messages")
        return prompt_of_messages(messages, self.processor, images=self._limits.images)

    async def tokens(self, asked: Asked) -> list[Tokenized]:
        """The tokens of a prompt; images are counted, not fetched, as their tokens do not depend on them.

        Raises:
            InputError: the request cannot be answered as it is.
        """
        self._check(asked)
        return await self.in_worker(lambda: self._tokens(asked))

    async def in_worker(self, work: Callable[[], Result], *, brief: bool = False) -> Result:
        """Runs something slow beside the event loop; something brief right here, as handing it over would take longer."""
        return work() if brief else await self._crew.do(work)

    @property
    def healthy(self) -> bool:
        """Whether what is begun comes back."""
        return not self._crew.busy_for(self._limits.stuck_after)

    def close(self) -> None:
        """Lets go of the threads."""
        self._crew.close()

    def _adjusted(self, asked: Asked) -> Processor:
        return self.processor.adjusted(max_image_size=asked.max_image_size, split=asked.split)

    def _check(self, asked: Asked) -> None:
        if len(asked.prompt.references) > self._limits.images:
            raise ImageError(
                f"{len(asked.prompt.references)} images in one request are over the limit of {self._limits.images}"
            )
        if len(asked.prompt.text) > self._characters:
            raise TooLong(limit=self._positions, characters=len(asked.prompt.text), prompt=asked.words.prompt)
        size = asked.max_image_size
        if size is not None and not 1 <= size <= self._longest_image:
            raise Invalid(f"max_image_size = {size} must be from 1 to {self._longest_image} pixels", param="max_image_size")
        if len(asked.stop) > self._limits.stops:
            raise Invalid(f"`stop` supports up to {self._limits.stops} stop sequences. Given: {len(asked.stop)}", param="stop")
        for text in asked.stop:
            if not 0 < len(text) <= self._limits.stop_characters:
                raise Invalid(
                    f"a stop sequence must have from 1 to {self._limits.stop_characters} characters, not {len(text)}",
                    param="stop",
                )

    def _stops(self, given: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
        """Stop strings that are one special token, which texts do not show, by id; and the others."""
        special = set(self.processor.tokenizer.all_special_ids)
        ids = {text: self.processor.tokenizer.backend.token_to_id(text) for text in given}
        as_ids = {text: found for text, found in ids.items() if found is not None and found in special}
        return list(as_ids.values()), tuple(text for text in dict.fromkeys(given) if text not in as_ids)

    def _check_tokens(self, asked: Asked, params: SamplingParams) -> None:
        ids = self.processor.tokenizer.encode(self._adjusted(asked).expand(asked.prompt.text))
        cut = 0 if asked.truncate is None else self._cut(torch.tensor(ids), asked.truncate)
        self._room(asked.words, params, len(ids) - cut)

    def _make(self, asked: Asked, ready: Mapping[str, PreparedImage]) -> ModelInputs:
        for image in ready.values():
            for part in image.parts:
                image_digest(part)  # which the engine would otherwise have to make between two steps
        rows = [[ready[reference] for reference in asked.prompt.references]]
        inputs = self._adjusted(asked).inputs([asked.prompt.text], rows)
        return inputs if asked.truncate is None else self._truncated(inputs, asked.truncate)

    async def _ready(
        self, references: Sequence[str], fetched: Mapping[str, bytes], processor: Processor
    ) -> tuple[dict[str, PreparedImage], int]:
        """The images by reference, decoded and prepared one after the other, and the encoded ones' bytes."""
        ready: dict[str, PreparedImage] = {}
        decoding, image_bytes = self._decoders.of_request(processor.image_processor, self._limits), 0
        for number, reference in enumerate(references, 1):
            if reference in ready:
                continue
            where = f"image {number} of {len(references)}"
            image, size = await decoding.image(fetched.get(reference, reference), where)
            self._budget.take(image)
            ready[reference] = image
            image_bytes += size
        return ready, image_bytes

    def _truncated(self, inputs: ModelInputs, tokens: int) -> ModelInputs:
        """The last tokens of a prompt; the images must be among them."""
        cut = self._cut(inputs.input_ids_BT[0], tokens)
        return replace(
            inputs,
            input_ids_BT=inputs.input_ids_BT[:, cut:],
            attention_mask_BT=inputs.attention_mask_BT[:, cut:],
            seen_BT=None if inputs.seen_BT is None else inputs.seen_BT[:, cut:],
        )

    def _cut(self, ids_T: torch.Tensor, tokens: int) -> int:
        """How many tokens are cut off so that the last ones remain."""
        cut = max(0, len(ids_T) - tokens)
        around = torch.tensor([self.processor.image_token_id, self.processor.fake_image_token_id])
        if torch.isin(ids_T[:cut], around).any():
            raise Invalid(
                f"truncate = {tokens} would cut an image off a prompt of {len(ids_T)} tokens; raise it or give fewer images",
                param="truncate",
            )
        return cut

    def _room(self, words: Words, params: SamplingParams, tokens: int) -> int:
        if tokens >= self._positions:
            raise TooLong(limit=self._positions, tokens=tokens, prompt=words.prompt)
        new = params.new_tokens(tokens, positions=self._positions)
        if tokens + new > self._positions:
            raise NoRoom(limit=self._positions, tokens=tokens, new=new, prompt=words.prompt, answer=words.new_tokens)
        return new

    def _tokens(self, asked: Asked) -> list[Tokenized]:
        text = self._adjusted(asked).expand(asked.prompt.text)
        encoding = self.processor.tokenizer.read(text)
        # Where each token stands in the text without marks, which is what people sent.
        before = [0, *accumulate(character == MARK for character in text)] if MARK in text else [0] * (len(text) + 1)
        return [
            Tokenized(id, unmarked(text[start:stop]), start - before[start], stop - before[stop])
            for id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
