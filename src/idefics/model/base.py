"""What every model of this package can do; the engine knows no more of it than this.

Letters: B rows, R continued rows, T new tokens, S all tokens, D hidden size, V vocabulary, C x H x W pixels of an image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from idefics.config import Config
from idefics.errors import InputError, OptionError
from idefics.inputs import Levels, ModelInputs
from idefics.model.arrangement import Ability, Arrangement, check_stays
from idefics.model.cache import KVCache
from idefics.model.decoder import Decoder
from idefics.model.layers.linear import Block, Linears
from idefics.model.peaks import encoding_bytes, groups
from idefics.model.sight import Sight

__all__ = ["VisionLanguageModel"]


class VisionLanguageModel(Block, ABC):
    """Images and text in, hidden states and logits out.

    There is one way for images into the decoder:

        latents_NLD = model.encode_images(images)                # each image alone
        projected = model.project(latents_NLD)                   # all that is computed of images alone, to be kept
        seen = model.sight(projected, model.sources(inputs))     # what these tokens draw on, of these images
        hidden_BTD = model(ids_BT, positions_BT=..., seen=seen)

    `see` is the first three. `check` comes before: it counts what is to meet.

    Attributes:
        config: sizes; `config.text_config` are the decoder's in every family.
        text_model: the decoder.
        vision_model: the tower.
        lm_head: hidden states to logits.
        arrangements: what was done to it from outside, set by whoever did it; none for a plain model.
    """

    linears = (Linears(names=("lm_head",), split="vocabulary"),)
    arrangements: tuple[Arrangement, ...] = ()

    config: Config
    text_model: Decoder
    vision_model: nn.Module
    lm_head: nn.Linear

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations that the model expects and makes."""
        return self.text_model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.text_model.embed_tokens.weight.device

    @property
    def layer_devices(self) -> list[torch.device]:
        """The device of each decoder layer, where its keys and values belong."""
        return [next(layer.parameters()).device for layer in self.text_model.layers]

    @property
    def key_value_heads(self) -> int:
        """Those that a decoder layer computes in this process, for which a cache must have room."""
        return self.config.text_config.num_key_value_heads // math.prod(done.processes for done in self.arrangements)

    @property
    def is_divided(self) -> bool:
        """Whether this process holds a part of every layer only."""
        return any(done.kind == "divided" for done in self.arrangements)

    def refusal(self, what: Ability) -> str | None:
        """Why something cannot be done with the model as it is arranged, in one sentence; None where it can."""
        return next((done.refusal(what) for done in self.arrangements if what in done.cannot), None)

    def train(self, mode: bool = True) -> Self:
        """As torch's.

        Raises:
            OptionError: the model is arranged so that it cannot be trained.
        """
        refusal = self.refusal("trained") if mode else None
        if refusal is not None:
            raise OptionError(refusal)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        check_stays(self, fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def check(self, inputs: ModelInputs) -> None:
        """Refuses prompts that the model would misread.

        Raises:
            InputError: a token id does not exist, or text and images do not fit each other; the numbers are named.
        """
        ids, size = inputs.input_ids_BT[inputs.attention_mask_BT.bool()], self.config.text_config.vocab_size
        outside = ids[(ids < 0) | (ids >= size)].tolist()
        if outside:
            raise InputError(
                f"token id {outside[0]} is outside the model's vocabulary of {size}; "
                "the tokenizer does not belong to this checkpoint (a base model has no <end_of_utterance>)"
            )

    def encoding_bytes(self, image: Tensor | Levels) -> int:
        """What an image takes while it is encoded."""
        height, width = (side // self.config.vision_config.patch_size for side in image.shape[-2:])
        return encoding_bytes(self.config, height * width, width=self.dtype.itemsize)

    def groups(self, images_CHW: Sequence[Tensor | Levels]) -> Iterator[tuple[int, int]]:
        """Consecutive (first, last) ranges of images that are encoded together, which bounds what they take."""
        return groups([self.encoding_bytes(image) for image in images_CHW])

    @abstractmethod
    def encode_images(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        """Encodes images, each alone, to (N, L, features) that a decoder can look at."""

    @abstractmethod
    def image_vectors(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        """One vector per image (N, F) of the tower, by which images can be compared."""

    @abstractmethod
    def project(self, latents_NLD: Tensor) -> tuple[Tensor, ...]:
        """Everything that decoders compute of images alone, to be kept: tensors whose first dimension is that of images."""

    sources_remain: ClassVar[bool]
    """Whether tokens after the prompt draw on the source that its last token draws on, or on none."""

    @property
    @abstractmethod
    def sources_per_image(self) -> int:
        """What tokens draw on: an image is one source, or as many as it has latents if each latent is a token's own."""

    @abstractmethod
    def sources(self, inputs: ModelInputs) -> Tensor:
        """Which source each token draws on, or -1 (B, T), counted over all images of `inputs`; an image's are consecutive."""

    @abstractmethod
    def sight(self, projected: tuple[Tensor, ...], source_BT: Tensor) -> Sight | None:
        """What `forward` wants as `seen` for tokens that draw on these sources of these images; None if none draws on any.

        Args:
            projected: of one or more images, from `project`.
            source_BT: sources counted over those images, or -1. Where sources remain, one column stands for all tokens of
                its row.
        """

    def see(self, inputs: ModelInputs, *, latents_NLD: Tensor | None = None) -> Sight | None:
        """What the prompts' tokens draw on; None if there are no images.

        Args:
            inputs: the prompts, which `check` has seen.
            latents_NLD: `encode_images` of their images, where that is known; None encodes them.
        """
        if latents_NLD is None:
            if not inputs.images_CHW:
                return None
            latents_NLD = self.encode_images(inputs.images_CHW)
        return self.sight(self.project(latents_NLD), self.sources(inputs))

    @abstractmethod
    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        positions_BT: Tensor,
        seen: Sight | None = None,
        key_mask_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Runs new tokens and returns hidden states (B, T, D).

        Args:
            input_ids_BT: new tokens.
            positions_BT: their positions, padding not counted.
            seen: from `sight`, for exactly these tokens; None where none draws on an image.
            key_mask_BS: bool over cached and new tokens, False for padding; None when nothing is padding.
            cache: keys and values of the tokens before.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D), in the model's dtype. Ask only for the positions you need."""
        out: Tensor = self.lm_head(hidden)
        return out
