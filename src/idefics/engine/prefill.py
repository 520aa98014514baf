"""A batch of prompts in the cache, ready to be continued token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.config import Idefics2Config
from idefics.engine.kv_cache import StaticKVCache
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.model.idefics2 import Idefics2
from idefics.parallel.device_map import layer_devices
from idefics.weights.memory import explain_out_of_memory

__all__ = ["Prefill", "check_alignment", "left_aligned", "positions"]


class Prefill:
    """Encodes the images, runs the prompts, and goes on one token at a time.

    Letters: B prompts, R rows being continued (a prompt with several candidates or beams has several), T prompt tokens.

    Args:
        model: the model.
        inputs: the prompts.
        rows: which prompt each continued row belongs to; each prompt is run once, then copied.
        rooms: new tokens of each prompt at most, for which the cache leaves room.

    Attributes:
        prompt_ids: each prompt's ids without padding.
        logits_RV: float32 logits of the next token of each row.
    """

    def __init__(self, model: Idefics2, inputs: ModelInputs, *, rows: Sequence[int], rooms: Sequence[int]) -> None:
        check_alignment(inputs, config=model.config)
        device = model.text_model.embed_tokens.weight.device
        ids_BT, mask_BT = (t.to(device) for t in left_aligned(inputs.input_ids_BT, inputs.attention_mask_BT))
        self.prompt_ids: list[list[int]] = [ids[mask].tolist() for ids, mask in zip(ids_BT, mask_BT, strict=True)]
        limit = model.config.text_config.max_position_embeddings
        for ids, room in zip(self.prompt_ids, rooms, strict=True):
            if len(ids) >= limit:
                raise InputError(
                    f"a prompt of {len(ids)} tokens (images included) does not fit the model's {limit} positions; "
                    "shorten it, use fewer images or turn splitting off"
                )
            if len(ids) + room > limit:
                raise InputError(
                    f"a prompt of {len(ids)} tokens (images included) and {room} new ones exceed the model's {limit} "
                    f"positions; ask for at most {limit - len(ids)} new tokens"
                )
        new_tokens = max(rooms)
        self._model = model
        padded = bool((~mask_BT).any())
        prompts = f"{len(ids_BT)} prompt(s) of {ids_BT.shape[1]} tokens with {len(inputs.images_CHW)} image(s)"
        with explain_out_of_memory(
            f"running {prompts} and {new_tokens} new tokens",
            reduce="use smaller images (max_image_size), no splitting, fewer prompts or new tokens, or a smaller dtype",
        ):
            self._cache = StaticKVCache(
                model.config.text_config,
                rows=len(ids_BT),
                capacity=ids_BT.shape[1] + new_tokens,
                dtype=model.dtype,
                devices=layer_devices(model),
            )
            latents_NLD = model.encode_images([i.to(device) for i in inputs.images_CHW]) if inputs.images_CHW else None
            hidden_BTD = model(
                ids_BT,
                positions_BT=positions(mask_BT),
                latents_NLD=latents_NLD,
                key_mask_BS=mask_BT if padded else None,
                cache=self._cache,
            )
        self._prompt_length = ids_BT.shape[1]
        picked = torch.tensor(list(rows), device=device)
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

    def extend(self, tokens_RT: Tensor) -> Tensor:
        """Appends tokens to each row; returns float32 logits (R, T, V) after each of them."""
        tokens = tokens_RT.shape[1]
        end = self._cache.length + tokens
        hidden_RTD = self._model(
            tokens_RT,
            positions_BT=self._lengths_R[:, None] + torch.arange(tokens, device=self._lengths_R.device),
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


def left_aligned(ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with all padding at the left, and the mask as bool.

    Raises:
        InputError: a row is empty, or padding stands between tokens.
    """
    mask = mask_BT.bool()
    lengths = mask.sum(1).tolist()
    out_ids, out_mask = ids_BT.clone(), torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        places = mask[row].nonzero().flatten()
        if length == 0:
            raise InputError(f"prompt {row + 1} is empty")
        if int(places[-1] - places[0]) + 1 != length:
            raise InputError(f"attention_mask of prompt {row + 1} has padding between tokens")
        start = ids_BT.shape[1] - length
        out_ids[row, start:] = ids_BT[row, mask[row]]
        out_ids[row, :start] = 0
        out_mask[row, start:] = True
    return out_ids, out_mask


def positions(mask_BT: Tensor) -> Tensor:
    """Position of each token, padding not counted (int64; 0 for padding)."""
    return (mask_BT.long().cumsum(1) - 1).clamp(min=0)


def check_alignment(inputs: ModelInputs, *, config: Idefics2Config) -> None:
    """Refuses prompts whose image tokens do not match their images, row by row.

    Raises:
        InputError: the row and both numbers are named.
    """
    latents = config.perceiver_config.resampler_n_latents
    real = inputs.attention_mask_BT.bool()
    places = ((inputs.input_ids_BT == config.image_token_id) & real).sum(1).tolist()
    images = inputs.images_per_row or (0,) * len(places)
    for row, (found, count) in enumerate(zip(places, images, strict=True)):
        if found != count * latents:
            raise InputError(
                f"prompt {row + 1} holds {found} image token(s) but its {count} image(s) of {latents} latents need "
                f"{count * latents}; text and images must come from one processor call with the same splitting"
            )
    ids, size = inputs.input_ids_BT[real], config.text_config.vocab_size
    outside = ids[(ids < 0) | (ids >= size)].tolist()
    if outside:
        raise InputError(
            f"token id {outside[0]} is outside the model's vocabulary of {size}; "
            "the tokenizer does not belong to this checkpoint (a base model has no <end_of_utterance>)"
        )
