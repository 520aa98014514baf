"""How likely given continuations are: the prompt runs once, each continuation on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from idefics.engine.prefill import Encoder, Prefill, encoder_of, left_aligned
from idefics.engine.sampling import require_finite
from idefics.engine.static_cache import StaticKVCache
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from idefics.model.logits import positions

__all__ = ["score_continuations", "score_prompt"]

AT_ONCE = 256  # rows of logits: a vocabulary of 32,003 in float32 is 128 kB each
PASS = 2048  # tokens of a prompt that go through the decoder together


@torch.inference_mode()
def score_continuations(
    model: VisionLanguageModel,
    inputs: ModelInputs,
    continued: Sequence[Sequence[int]],
    *,
    document_end: int | None = None,
    encoded: Encoder | None = None,
) -> list[tuple[list[float], bool]]:
    """Log-probability of each token of each continuation.

    Args:
        model: the model.
        inputs: one prompt and its images.
        continued: ids of prompt and continuation together. Where the text's end merges with a continuation's beginning
            into other tokens, scoring begins at the first token that differs.
        document_end: the id after which tokens no longer see the images before it, as in the model's training; None if
            there is none.
        encoded: as of `Prefill`.

    Returns:
        For each: log-probabilities of its tokens, and whether each token was the likeliest.

    Raises:
        InputError: a continuation adds no token, or exceeds the model's positions.
        NumericsError: NaN or infinite logits.
    """
    if not continued:
        return []
    prompt = inputs.input_ids_BT[0][inputs.attention_mask_BT[0].bool()].tolist()
    shared = min(_common(prompt, ids) for ids in continued)
    for index, ids in enumerate(continued):
        if len(ids) <= shared:
            raise InputError(f"continuation {index + 1} adds no token to the prompt")
    longest = max(map(len, continued)) - shared
    prefill = Prefill(model, _shortened(inputs, prompt[:shared]), rows=[0], rooms=[longest], encoded=encoded)
    device = prefill.logits_RV.device
    results = []
    for ids in continued:
        targets_T = torch.tensor(ids[shared:], device=device)
        logprobs, likeliest = _judged(prefill.logits_RV, targets_T[:1])
        sees = prompt[shared - 1] != document_end
        for document in _documents(ids[shared:-1], document_end):
            for first in range(0, len(document), AT_ONCE):
                part = torch.tensor([document[first : first + AT_ONCE]], device=device)
                logits_TV = prefill.extend(part, sees=sees)[0]
                more, likely = _judged(logits_TV, targets_T[len(logprobs) : len(logprobs) + len(logits_TV)])
                logprobs, likeliest = logprobs + more, likeliest and likely
            sees = False
        prefill.rewind()
        results.append((logprobs, likeliest))
    return results


def _judged(logits_TV: Tensor, targets_T: Tensor) -> tuple[list[float], bool]:
    """Log-probability of each token, and whether all are the likeliest."""
    require_finite(logits_TV)
    logprobs_T = logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    return logprobs_T.tolist(), bool((logits_TV.argmax(-1) == targets_T).all())


def _documents(ids: Sequence[int], end: int | None) -> list[Sequence[int]]:
    """The ids cut after each `end`."""
    cuts = [0, *(place + 1 for place, found in enumerate(ids) if found == end), len(ids)]
    return [ids[start:stop] for start, stop in pairwise(cuts) if stop > start]


@torch.inference_mode()
def score_prompt(model: VisionLanguageModel, inputs: ModelInputs, *, encoded: Encoder | None = None) -> list[float]:
    """Log-probability of each token of a prompt after those before it; the first has none.

    Args:
        model: the model.
        inputs: one prompt and its images.
        encoded: as of `Prefill`.

    Raises:
        InputError: prompt and images do not match.
        NumericsError: NaN or infinite logits.
    """
    model.check(inputs)
    inputs = left_aligned(inputs)
    ids_1T, length = inputs.input_ids_BT, inputs.input_ids_BT.shape[1]
    positions_1T, sources_1T = positions(inputs.attention_mask_BT), model.sources(inputs)
    projected = (encoded or encoder_of(model))(inputs)
    cache = None
    if length > PASS:
        cache = StaticKVCache(
            model.config.text_config,
            rows=1,
            capacity=length,
            dtype=model.dtype,
            devices=model.layer_devices,
            heads=model.key_value_heads,
        )
    scores: list[float] = []
    for first in range(0, length - 1, PASS):
        now = slice(first, first + PASS)
        hidden_1TD = model(
            ids_1T[:, now].to(model.device),
            positions_BT=positions_1T[:, now].to(model.device),
            seen=None if projected is None else model.sight(projected, sources_1T[:, now]),
            cache=cache,
        )
        for start in range(0, hidden_1TD.shape[1], AT_ONCE):
            logits_TV = model.logits(hidden_1TD[0, start : start + AT_ONCE]).float()
            require_finite(logits_TV)
            targets_T = ids_1T[0, first + start + 1 : first + start + 1 + len(logits_TV)].to(logits_TV.device)
            scores += _judged(logits_TV[: len(targets_T)], targets_T)[0]
    return scores


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    same = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        same += 1
    return same


def _shortened(inputs: ModelInputs, ids: Sequence[int]) -> ModelInputs:
    if not ids:
        raise InputError("the prompt and a continuation have no token in common; begin the prompt with text or an image")
    ids_1T = torch.tensor([list(ids)])
    return replace(
        inputs,
        input_ids_BT=ids_1T,
        attention_mask_BT=torch.ones_like(ids_1T),
        seen_BT=None if inputs.seen_BT is None else inputs.seen_BT[inputs.attention_mask_BT.bool()][None, : len(ids)],
    )
