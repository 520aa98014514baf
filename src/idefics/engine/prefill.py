"""A batch of prompts in the cache, ready to be continued token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idefics.engine.image_cache import Encoded
from idefics.engine.limits import check_room
from idefics.engine.static_cache import StaticKVCache
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.machine.memory import explain_out_of_memory
from idefics.model.base import VisionLanguageModel
from idefics.model.logits import positions
from idefics.model.sight import Sight

__all__ = ["LESS", "Encoder", "Prefill", "encoder_of", "left_aligned", "remaining"]

Encoder = Callable[[ModelInputs], Encoded | None]
"""Of the prompts' images, what `VisionLanguageModel.project` makes of them; None if there are none."""

LESS = "use smaller images (max_image_size), no splitting, fewer prompts or new tokens, or a smaller dtype"
"""What to do where memory ends."""


class Prefill:
    """Encodes the images, runs the prompts, and goes on one token at a time.

    Letters: B prompts, R rows being continued (a prompt with several candidates or beams has several), T prompt tokens.

    Args:
        model: the model.
        inputs: the prompts.
        rows: which prompt each continued row belongs to; each prompt is run once, then copied.
        rooms: new tokens of each prompt at most, for which the cache leaves room.
        encoded: encodes their images, of which it may know some already; None asks the model for all.

    Attributes:
        prompt_ids: each prompt's ids without padding.
        logits_RV: float32 logits of the next token of each row.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        inputs: ModelInputs,
        *,
        rows: Sequence[int],
        rooms: Sequence[int],
        encoded: Encoder | None = None,
    ) -> None:
        model.check(inputs)
        device = model.device
        given = left_aligned(inputs)
        inputs = given.to(device)
        ids_BT, mask_BT = inputs.input_ids_BT, inputs.attention_mask_BT
        self.prompt_ids: list[list[int]] = [ids[mask].tolist() for ids, mask in zip(ids_BT, mask_BT, strict=True)]
        for ids, room in zip(self.prompt_ids, rooms, strict=True):
            check_room(model, prompt=len(ids), new=room)
        new_tokens = max(rooms)
        self._model = model
        padded = bool((~mask_BT).any())
        prompts = f"{len(ids_BT)} prompt(s) of {ids_BT.shape[1]} tokens with {len(inputs.images_CHW)} image(s)"
        with explain_out_of_memory(
            f"running {prompts} and {new_tokens} new tokens",
            reduce=LESS,
        ):
            self._cache = StaticKVCache(
                model.config.text_config,
                rows=len(ids_BT),
                capacity=ids_BT.shape[1] + new_tokens,
                dtype=model.dtype,
                devices=model.layer_devices,
                heads=model.key_value_heads,
            )
            projected = (encoded or encoder_of(model))(given)
            sources_BT = model.sources(given)
            hidden_BTD = model(
                ids_BT,
                positions_BT=positions(mask_BT),
                seen=None if projected is None else model.sight(projected, sources_BT),
                key_mask_BS=mask_BT if padded else None,
                cache=self._cache,
            )
        self._prompt_length = ids_BT.shape[1]
        picked = torch.tensor(list(rows), device=device)
        self._seen = None if projected is None else remaining(model, projected, sources_BT[list(rows), -1])
        if picked.tolist() != list(range(len(ids_BT))):
            self._cache.select(picked)
        self._lengths_R = torch.tensor([len(ids) for ids in self.prompt_ids], device=device)[picked]
        answers_BS = torch.ones(len(ids_BT), new_tokens, dtype=torch.bool, device=device)
        self._key_mask_RS = torch.cat((mask_BT, answers_BS), dim=1)[picked] if padded else None
        logits_BV = model.logits(hidden_BTD[:, -1]).float()
        self.logits_RV = logits_BV[picked.to(logits_BV.device)]  # the head may lie on another device than the embedding

    def step(self, tokens_R1: Tensor) -> Tensor:
        """Appends one token to each row; returns float32 logits (R, V) of the next."""
        return self.extend(tokens_R1)[:, -1]

    def extend(self, tokens_RT: Tensor, *, sees: bool = True) -> Tensor:
        """Appends tokens to each row; returns float32 logits (R, T, V) after each of them.

        Args:
            tokens_RT: to append.
            sees: whether they look at what the prompt's last token looks at; after the end of a document they do not.
        """
        tokens = tokens_RT.shape[1]
        end = self._cache.length + tokens
        hidden_RTD = self._model(
            tokens_RT,
            positions_BT=self._lengths_R[:, None] + torch.arange(tokens, device=self._lengths_R.device),
            seen=self._seen if sees else None,
            key_mask_BS=None if self._key_mask_RS is None else self._key_mask_RS[:, :end],
            cache=self._cache,
        )
        self._lengths_R = self._lengths_R + tokens
        return self._model.logits(hidden_RTD).float()

    def rewind(self) -> None:
        """Forgets everything after the prompts."""
        self._lengths_R = self._lengths_R - (self._cache.length - self._prompt_length)
        self._cache.truncate(self._prompt_length)

    def reorder(self, rows_R: Tensor) -> None:
        """Row i goes on from what row `rows_R[i]` holds; all rows must belong to one prompt."""
        self._cache.select(rows_R)


def left_aligned(inputs: ModelInputs) -> ModelInputs:
    """The same rows with all padding at the left, of id 0, and the mask as bool.

    Raises:
        InputError: a row is empty, or padding stands between tokens.
    """
    mask = inputs.attention_mask_BT.bool()
    ids, seen = torch.zeros_like(inputs.input_ids_BT), None
    out_mask = torch.zeros_like(mask)
    if inputs.seen_BT is not None:
        seen = torch.full_like(inputs.seen_BT, -1)
    for row, length in enumerate(mask.sum(1).tolist()):
        places = mask[row].nonzero().flatten()
        if length == 0:
            raise InputError(f"prompt {row + 1} is empty")
        if int(places[-1] - places[0]) + 1 != length:
            raise InputError(f"attention_mask of prompt {row + 1} has padding between tokens")
        start = mask.shape[1] - length
        ids[row, start:] = inputs.input_ids_BT[row, mask[row]]
        out_mask[row, start:] = True
        if seen is not None and inputs.seen_BT is not None:
            seen[row, start:] = inputs.seen_BT[row, mask[row]]
    return replace(inputs, input_ids_BT=ids, attention_mask_BT=out_mask, seen_BT=seen)


def encoder_of(model: VisionLanguageModel) -> Encoder:
    """The encoder that knows no image yet."""
    return lambda inputs: model.project(model.encode_images(inputs.images_CHW)) if inputs.images_CHW else None


def remaining(model: VisionLanguageModel, projected: Encoded, source_R: Tensor) -> Sight | None:
    """What tokens that follow draw on: what their row's last one does, if sources remain. No other image is kept.

    Args:
        model: whose sources they are.
        projected: the prompts' images.
        source_R: the source of each row's last token, or -1.
    """
    if not model.sources_remain:
        return None
    # One row is one prompt's beams or candidates as often as not: what several rows see is kept once.
    each = model.sources_per_image
    images = sorted({source // each for source in source_R.tolist() if source >= 0})
    now = [-1 if source < 0 else images.index(source // each) * each + source % each for source in source_R.tolist()]
    return model.sight(tuple(part[images] for part in projected), torch.tensor(now)[:, None]) if images else None
