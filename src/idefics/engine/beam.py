"""Beam search for one prompt: the best continuations by summed log-probability over a power of their length.

The rules are those of transformers 5 (vectorised there, written out here): of the best candidates of a step, those that
end among the first `num_beams` become answers; the best that go on are the next beams; the search ends when no running
beam can beat the worst of `num_beams` answers, judged at the current length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from idefics.engine.history import History
from idefics.engine.prefill import Prefill
from idefics.engine.request import Completion, FinishReason, StopCheck
from idefics.engine.sampling import ban, require_finite
from idefics.engine.sampling_params import SamplingParams

__all__ = ["beam_search"]


@dataclass(frozen=True)
class Hypothesis:
    """A continuation, running or ended: ids, summed log-probability (running) or score (ended), and how it ended."""

    ids: tuple[int, ...]
    score: float
    finish: FinishReason | None = None


def beam_search(prefill: Prefill, params: SamplingParams, stop: StopCheck | None, *, room: int) -> list[Completion]:
    """Searches from a prefilled prompt.

    Args:
        prefill: one prompt, copied to `params.num_beams` rows.
        params: how to search; `params.n` answers are returned.
        stop: whether an answer (its ids so far) holds a stop string.
        room: new tokens at most.

    Returns:
        Answers, best first.

    Raises:
        NumericsError: NaN or infinite logits.
    """
    beams = params.num_beams
    history = History(params, prefill.prompt_ids[0])
    running = [Hypothesis((), 0.0 if beam == 0 else -1e9) for beam in range(beams)]
    ended: list[Hypothesis] = []
    logits_RV = prefill.logits_RV
    for length in range(1, room + 1):
        require_finite(logits_RV)
        logprobs_RV = logits_RV.log_softmax(-1)
        for beam, hypothesis in enumerate(running):
            logprobs_RV[beam] = history.reweighed(logprobs_RV[beam], hypothesis.ids)
        ban(logprobs_RV, [history.banned(hypothesis.ids) for hypothesis in running])
        totals = logprobs_RV + torch.tensor([h.score for h in running], device=logprobs_RV.device)[:, None]
        wanted = max(2, 1 + len(params.eos_token_id)) * beams
        scores, places = totals.flatten().topk(min(wanted, totals.numel()))
        candidates: list[tuple[int, Hypothesis]] = []
        for score, place in zip(scores.tolist(), places.tolist(), strict=True):
            beam, token = divmod(place, totals.shape[1])
            ids = (*running[beam].ids, token)
            candidates.append((beam, Hypothesis(ids, score, _finish(ids, params, stop, room))))
        for _, h in candidates[:beams]:
            if h.finish is not None:
                ended.append(Hypothesis(h.ids, h.score / length**params.length_penalty, h.finish))
        ended = sorted(ended, key=lambda h: -h.score)[:beams]
        going_on = [(beam, h) for beam, h in candidates if h.finish is None][:beams]
        if not going_on or (params.early_stopping and len(ended) == beams):
            break
        if len(ended) == beams and going_on[0][1].score / length**params.length_penalty <= ended[-1].score:
            break
        while len(going_on) < beams:
            going_on.append((going_on[0][0], Hypothesis(going_on[0][1].ids, -1e9)))
        running = [h for _, h in going_on]
        device = logits_RV.device
        prefill.reorder(torch.tensor([beam for beam, _ in going_on], device=device))
        logits_RV = prefill.step(torch.tensor([[h.ids[-1]] for h in running], device=device))
    return [
        Completion(token_ids=h.ids, logprobs=(), top=(), score=h.score, finish=h.finish or "length") for h in ended[: params.n]
    ]


def _finish(ids: tuple[int, ...], params: SamplingParams, stop: StopCheck | None, room: int) -> FinishReason | None:
    if ids[-1] in params.eos_token_id:
        return "eos"
    if stop is not None and stop(ids):
        return "stop"
    return "length" if len(ids) >= room else None
