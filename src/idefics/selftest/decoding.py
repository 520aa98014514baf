"""Checks of the decoder: batches, padding, positions, cache and window.

Letters: B rows, G key-value heads, T tokens, S keys, K head size, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from idefics.engine.prefill import Prefill
from idefics.engine.static_cache import StaticKVCache
from idefics.inputs import ModelInputs
from idefics.model.cache import RowCache
from idefics.model.nearness import distance
from idefics.selftest.checks import Check, inapplicable, judge_logits, number
from idefics.selftest.subject import Run, Subject

__all__ = [
    "batch_equals_single",
    "cache_equals_full",
    "padding_inert",
    "positions_count_tokens",
    "window_respected",
]


def batch_equals_single(subject: Subject) -> Check:
    """Rows with no image, one and two, padded and continued together, against each whole and alone."""
    expected = [_continued(subject, run) for run in subject.runs]
    return judge_logits(
        "batch equals single",
        torch.stack(expected),
        subject.batched.logits_BTV,
        allowed=subject.allowed,
        holds="logits of a text-only row and rows with one and two images, padded as for beams and scores, and each alone",
        broken="an answer depends on what else is in the batch",
    )


def padding_inert(subject: Subject) -> Check:
    """What padding holds and on which side it stands changes nothing."""
    row = subject.row(1)
    ids_1T, mask_1T = row.input_ids_BT, row.attention_mask_BT
    junk = ids_1T.new_full((1, 5), subject.new_ids[0])
    none = torch.zeros_like(junk)
    inputs = ModelInputs(
        input_ids_BT=torch.cat((torch.cat((junk, ids_1T), 1), torch.cat((ids_1T, junk), 1))),
        attention_mask_BT=torch.cat((torch.cat((none, mask_1T), 1), torch.cat((mask_1T, none), 1))),
        images_CHW=row.images_CHW * 2,
        images_per_row=row.images_per_row * 2,
        seen_BT=None
        if row.seen_BT is None
        else torch.cat((torch.cat((none - 1, row.seen_BT), 1), torch.cat((row.seen_BT, none - 1), 1))),
    )
    prefill = Prefill(subject.model, inputs, rows=range(2), rooms=[len(subject.new_ids)] * 2)
    new_BT = torch.tensor([subject.new_ids] * 2, device=subject.device)
    found = torch.cat((prefill.logits_RV[:, None], prefill.extend(new_BT)), dim=1)
    expected = _continued(subject, subject.runs[1])
    return judge_logits(
        "text padding is inert",
        torch.stack([expected] * 2),
        found,
        allowed=subject.allowed,
        holds="logits of a prompt padded with junk on the left, on the right, and not at all",
        broken="padding is seen by tokens, so answers depend on the longest prompt of a batch",
    )


def positions_count_tokens(subject: Subject) -> Check:
    """Tokens of every row, prompt and answer, are numbered from 0 without counting padding."""
    positions_BT, wrong = subject.batched.positions_BT, 0
    for run, positions_T in zip(subject.runs, positions_BT, strict=True):
        own = positions_T[-len(run.ids_T) :]
        wrong += int((own != torch.arange(len(run.ids_T))).sum()) if len(own) == len(run.ids_T) else len(run.ids_T)
    return Check(
        name="positions count tokens, not padding",
        passed=wrong == 0,
        measured=f"{wrong} wrong",
        allowed="0",
        explanation="positions given to the model for a left-padded batch and its continuation"
        + ("" if wrong == 0 else "; padded rows would be read as if longer"),
    )


def cache_equals_full(subject: Subject) -> Check:
    """A prompt with two images in pieces, cut inside text and inside an image, against all at once."""
    run = subject.runs[2]
    length = len(run.ids_T)
    places_T = run.ids_T == subject.config.image_token_id
    first, last = int(places_T.nonzero()[0]), int(places_T.nonzero()[-1])
    inside = first + (subject.processor.tokens_per_sub_image + 1) // 2
    cuts = sorted({0, 1, inside, last + 1, last + 3, length - 2, length - 1, length})
    cache = StaticKVCache(
        subject.config.text_config,
        rows=1,
        capacity=length,
        dtype=subject.model.dtype,
        devices=subject.model.layer_devices,
    )
    pieces: list[Tensor] = []
    for start, end in pairwise(cuts):
        pieces.append(
            subject.model(
                run.ids_T[None, start:end],
                positions_BT=torch.arange(start, end, device=subject.device)[None],
                seen=subject.seen(2, start, end),
                cache=cache,
            )[0]
        )
    return judge_logits(
        "cache equals full forward",
        subject.model.logits(run.hidden_TD),
        subject.model.logits(torch.cat(pieces)),
        allowed=subject.allowed,
        holds=f"logits of every position in {len(cuts) - 1} pieces of 1 to {max(b - a for a, b in pairwise(cuts))} tokens, "
        "and at once",
        broken="what was cached is not what a full pass sees (offset, position or mask)",
    )


def window_respected(subject: Subject) -> Check:
    """A token sees the keys of its sliding window and none before: a planted cache with one loud key on either side."""
    name, window = "sliding window is respected", subject.config.text_config.sliding_window
    if window is None:
        return inapplicable(name, "no window: every token sees all before it")
    past = window + 3
    oldest = past - window + 1
    ids = torch.tensor([[subject.new_ids[0]]], device=subject.device)
    positions = torch.full_like(ids, past)

    def answer(loud: int | None) -> Tensor:
        cache = PlantedCache(subject, past=past, loud=loud)
        hidden_BTD: Tensor = subject.model(ids, positions_BT=positions, cache=cache)
        return hidden_BTD

    quiet = answer(None)
    outside = max(distance(answer(key), quiet) for key in (0, oldest - 1))
    inside = distance(answer(oldest), quiet) if window > 1 else math.inf  # a window of 1 holds the token itself
    allowed = subject.least
    passed = outside <= allowed < inside
    return Check(
        name=name,
        passed=passed,
        measured=f"outside {number(outside)}, inside {number(inside)}",
        allowed=f"outside <= {number(allowed)} < inside",
        explanation=f"one loud key just outside and just inside a window of {window}"
        + ("" if passed else "; long prompts are read with the wrong reach"),
    )


class PlantedCache(RowCache):
    """A cache of silent keys with at most one loud value, one buffer for all layers (a window may be thousands long)."""

    def __init__(self, subject: Subject, *, past: int, loud: int | None) -> None:
        text = subject.config.text_config
        super().__init__(text.sliding_window)
        self._values = torch.zeros(
            1, text.num_key_value_heads, past, text.head_dim, dtype=subject.model.dtype, device=subject.device
        )
        self._keys = torch.zeros_like(self._values)
        if loud is not None:
            self._values[:, :, loud] = 1000.0  # even one part in thousands is heard
        self._past = past

    @property
    def length(self) -> int:
        """Of the planted keys."""
        return self._past

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The planted keys and values, alike for every layer, and the new ones; nothing is kept."""
        past = (self._keys.to(k_BGTK.device), self._values.to(v_BGTK.device))
        return torch.cat((past[0], k_BGTK), dim=2), torch.cat((past[1], v_BGTK), dim=2)

    def advance(self, tokens: int) -> None:
        """Nothing is kept."""


def _continued(subject: Subject, run: Run) -> Tensor:
    """Logits after the prompt and after each appended token (1 + appended, V)."""
    return subject.model.logits(run.hidden_TD[run.prompt - 1 :])
