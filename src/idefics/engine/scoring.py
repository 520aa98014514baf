"""How likely given continuations are: the prompt runs once, each continuation on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from idefics.engine.prefill import Prefill, left_aligned, positions
from idefics.engine.sampling import require_finite
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

__all__ = ["score_continuations", "score_prompt"]

AT_ONCE = 256  # rows of logits: a vocabulary of 32,003 in float32 is 128 kB each


@torch.inference_mode()
def score_continuations(
    model: VisionLanguageModel, inputs: ModelInputs, continued: Sequence[Sequence[int]], *, document_end: int | None = None
) -> list[tuple[list[float], bool]]:
    """Log-probability of each token of each continuation.

    Args:
        model: the model.
        inputs: one prompt and its images.
        continued: ids of prompt and continuation together. Where the text's end merges with a continuation's beginning
            into other tokens, scoring begins at the first token that differs.
        document_end: the id after which tokens no longer see the images before it, as in the model's training; None if
            there is none.

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
    prefill = Prefill(model, _shortened(inputs, prompt[:shared]), rows=[0], rooms=[longest])
    device = prefill.logits_RV.device
    results = []
    for ids in continued:
        targets = torch.tensor(ids[shared:], device=device)
        logits_TV = prefill.logits_RV
        sees = prompt[shared - 1] != document_end
        for part in _documents(ids[shared:-1], document_end):
            logits_TV = torch.cat((logits_TV, prefill.extend(torch.tensor([part], device=device), sees=sees)[0]))
            sees = False
        prefill.rewind()
        require_finite(logits_TV)
        logprobs = logits_TV.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        results.append((logprobs.tolist(), bool((logits_TV.argmax(-1) == targets).all())))
    return results


def _documents(ids: Sequence[int], end: int | None) -> list[Sequence[int]]:
    """The ids cut after each `end`."""
    cuts = [0, *(place + 1 for place, found in enumerate(ids) if found == end), len(ids)]
    return [ids[start:stop] for start, stop in pairwise(cuts) if stop > start]


@torch.inference_mode()
def score_prompt(model: VisionLanguageModel, inputs: ModelInputs) -> list[float]:
    """Log-probability of each token of a prompt after those before it; the first has none.

    Args:
        model: the model.
        inputs: one prompt and its images.

    Raises:
        InputError: prompt and images do not match.
        NumericsError: NaN or infinite logits.
    """
    model.check(inputs)
    inputs = left_aligned(inputs).to(model.device)
    ids_BT = inputs.input_ids_BT
    hidden_BTD = model(ids_BT, positions_BT=positions(inputs.attention_mask_BT), seen=model.see(inputs))
    scores: list[float] = []
    for start in range(0, ids_BT.shape[1] - 1, AT_ONCE):
        logits_TV = model.logits(hidden_BTD[0, start : start + AT_ONCE]).float()
        targets = ids_BT[0, start + 1 : start + 1 + AT_ONCE].to(logits_TV.device)
        require_finite(logits_TV)
        scores += logits_TV[: len(targets)].log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()
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
    return ModelInputs(
        input_ids_BT=ids_1T,
        attention_mask_BT=torch.ones_like(ids_1T),
        images_CHW=inputs.images_CHW,
        images_per_row=inputs.images_per_row,
        seen_BT=None if inputs.seen_BT is None else inputs.seen_BT[inputs.attention_mask_BT.bool()][None, : len(ids)],
    )
