"""From logits to tokens: all answers of a pass at once, on their device, which is waited for once.

The order is the published one: what depends on history first (`history.py`), then a guide, then temperature, then the cuts.
Where alternatives are wanted, the device is waited for once more.

Letters: R rows, one per answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.engine.history import BANNED, History, LogitFilter
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.upload import uploaded
from idefics.errors import NumericsError
from idefics.machine.memory import explain_out_of_memory

__all__ = ["Choice", "Choosing", "Draw", "Sampler", "ban", "choose", "cut_tails", "pick", "require_finite"]

COLDEST, HOTTEST = 1e-20, 1e20
"""Temperatures that logits are divided by. Beyond them the likeliest token alone is left, or all are alike, and in float32 the
quotients would be infinite, or what is forbidden would be no number."""


@dataclass(frozen=True)
class Choice:
    """A chosen token.

    Attributes:
        token: its id.
        logprob: its log-probability under the model, before any filter.
        top: the likeliest alternatives (id, log-probability), likeliest first; empty unless asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Draw:
    """How a token is drawn.

    Attributes:
        params: temperature and cuts.
        at: from 0 to 1: where in the sum of the probabilities that are left.
    """

    params: SamplingParams
    at: float


class Sampler:
    """One answer's way of choosing tokens, with random numbers of its own.

    Args:
        params: how.
        prompt: its ids.
        stream: which of a seed's streams of random numbers to draw from.
        guide: filters after all that `params` say.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], *, stream: int = 0, guide: LogitFilter | None = None
    ) -> None:
        self.params = params
        self.history = History(params, prompt)
        self._prompt = prompt
        self._guide = guide
        self._spare: Draw | None = None
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            # Candidates of one request draw from streams of their own, each reproducible alone.
            self._generator.manual_seed((params.seed + 0x9E3779B97F4A7C15 * stream) % 2**63)

    def guided(self, logits_V: Tensor, answer: Sequence[int]) -> Tensor:
        """Logits as the guide leaves them; may be the same tensor, changed."""
        return logits_V if self._guide is None else self._guide(logits_V, self._prompt, answer)

    def draw(self) -> Draw | None:
        """The next token's, or None where the likeliest is taken."""
        if not self.params.do_sample:
            return None
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        return Draw(self.params, float(torch.rand((), generator=self._generator, dtype=torch.float64)))

    def give_back(self, draw: Draw | None) -> None:
        """Has `draw` draw this again, because nothing came of it: a seed's tokens do not depend on free memory."""
        self._spare = draw


Choosing = tuple[Sampler, Tensor, Sequence[int]]
"""What `choose` needs of an answer: its sampler, float32 logits (V,), and the tokens chosen so far."""


def require_finite(logits: Tensor) -> None:
    """Refuses a model's own logits, before any filter, that are not numbers.

    Raises:
        NumericsError: NaN or infinite.
    """
    if not torch.isfinite(logits).all():
        raise NumericsError(
            "the model's logits are NaN or infinite: the weights hold such values or the dtype overflows; "
            "`idefics verify` tells which"
        )


def choose(rows: Sequence[Choosing]) -> list[Choice | Exception]:
    """The next token of several answers.

    Args:
        rows: of each answer, all on one device.

    Returns:
        Of each its choice, which does not depend on the others, or the error that concerns it alone.

    Raises:
        OutOfMemory: the machine is too small for so many.
    """
    draws = [sampler.draw() for sampler, _, _ in rows]
    try:
        with explain_out_of_memory(f"choosing {len(rows)} token(s)", reduce="run fewer answers at once"):
            return _chosen(rows, draws) if rows else []
    except Exception:
        for (sampler, _, _), draw in zip(rows, draws, strict=True):
            sampler.give_back(draw)
        raise


def _chosen(rows: Sequence[Choosing], draws: Sequence[Draw | None]) -> list[Choice | Exception]:
    logits_RV = torch.stack([logits_V for _, logits_V, _ in rows])
    allowed_RV = logits_RV.clone()
    failed: dict[int, Exception] = {}
    views = allowed_RV.unbind()
    for allowed_V, (sampler, _, answer) in zip(views, rows, strict=True):
        _put(allowed_V, sampler.history.reweighed(allowed_V, answer))
    ban(allowed_RV, [sampler.history.banned(answer) for sampler, _, answer in rows])
    for row, (sampler, _, answer) in enumerate(rows):
        try:
            _put(views[row], sampler.guided(views[row], answer))
        except Exception as error:  # of a guide that somebody handed over
            failed[row] = error
    picked = pick(logits_RV, allowed_RV, draws).tolist()
    wanted = {row: sampler.params.logprobs for row, (sampler, _, _) in enumerate(rows) if sampler.params.logprobs}
    top = alternatives(logits_RV, wanted) if wanted else {}
    chosen: list[Choice | Exception] = []
    for row, (token, logprob, good) in enumerate(picked):
        if row in failed:
            chosen.append(failed[row])
        elif good:
            chosen.append(Choice(int(token), logprob, top.get(row, ())))
        else:
            chosen.append(_refusal(logits_RV[row]))
    return chosen


def _put(row_V: Tensor, filtered_V: Tensor) -> None:
    """Writes what a filter made of a row into it, unless it did so itself."""
    if filtered_V is not row_V:
        row_V.copy_(filtered_V)


def ban(logits_RV: Tensor, banned: Sequence[Sequence[int]]) -> None:
    """Forbids each row its tokens, in place."""
    places = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    if places:
        row_X, token_X = uploaded(places, logits_RV.device).unbind(1)
        # A number from Python would be sent as a tensor by itself; this one is made where it is needed.
        logits_RV.index_put_((row_X, token_X), torch.full((), BANNED, device=logits_RV.device))


def pick(logits_RV: Tensor, allowed_RV: Tensor, draws: Sequence[Draw | None]) -> Tensor:
    """A token of each row, without waiting for a GPU: whoever reads the result waits, once.

    Args:
        logits_RV: float32, the model's own.
        allowed_RV: likewise, after all filters.
        draws: of each row how it is drawn, or None for the likeliest.

    Returns:
        float64 (R, 3): the token, its log-probability before any filter, and 1 where the row's logits are numbers and something
        was left to choose, else 0.
    """
    token_R = allowed_RV.argmax(1)
    drawn = [(row, draw) for row, draw in enumerate(draws) if draw is not None]
    if drawn:
        rows_X = uploaded([row for row, _ in drawn], logits_RV.device)
        token_R = token_R.index_copy(0, rows_X, _drawn(allowed_RV.index_select(0, rows_X), [draw for _, draw in drawn]))
    logprob_R = logits_RV.gather(1, token_R[:, None])[:, 0] - logits_RV.logsumexp(1)
    good_R = torch.isfinite(logits_RV).all(1) & torch.isfinite(allowed_RV.gather(1, token_R[:, None])[:, 0])
    return torch.stack([token_R.double(), logprob_R.double(), good_R.double()], dim=1)


def _drawn(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The token of each row at which the sum of probabilities passes what was drawn."""
    probabilities_RV = cut_tails(logits_RV, [draw.params for draw in draws]).softmax(-1)
    sums_RV = probabilities_RV.cumsum(-1, dtype=torch.float64)
    # Always below the last sum, so that no token without probability is at or after it.
    at_R1 = _column([draw.at * (1 - 2**-50) for draw in draws], sums_RV)
    token_R1 = torch.searchsorted(sums_RV, at_R1 * sums_RV[:, -1:], right=True)
    return token_R1[:, 0].clamp(max=logits_RV.shape[1] - 1)  # where there are no numbers, which `pick` notices


def cut_tails(logits_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Temperature, then top-k, top-p, min-p and typical-p, each over what the one before left; at least one token stays."""
    size = logits_RV.shape[1]

    def cut(off: Callable[[Tensor], Tensor], given: Sequence[float | None]) -> Tensor:
        """Without what `off` names in rows for which something is given."""
        if all(value is None for value in given):
            return logits_RV
        off_RV = off(_column([0.0 if value is None else value for value in given], logits_RV))
        if None in given:
            off_RV = off_RV & _column([value is not None for value in given], off_RV)
        return logits_RV.masked_fill(off_RV, BANNED)

    def below_the_kth(k_R1: Tensor) -> Tensor:
        most = min(size, max(p.top_k or 0 for p in params))
        return logits_RV < logits_RV.topk(most).values.gather(1, (k_R1.long() - 1).clamp(0, most - 1))

    def beyond_the_first(rest_R1: Tensor) -> Tensor:
        ordered_RV, order_RV = logits_RV.sort()
        # From the unlikeliest up: whatever lies within the last 1 - p of probability goes.
        off_RV = ordered_RV.softmax(-1).cumsum(-1) <= rest_R1
        off_RV[:, -1] = False
        return off_RV.scatter(1, order_RV, off_RV)

    def unlikely(least_R1: Tensor) -> Tensor:
        probabilities_RV = logits_RV.softmax(-1)
        return probabilities_RV < least_R1 * probabilities_RV.amax(1, keepdim=True)

    def untypical(mass_R1: Tensor) -> Tensor:
        logprobs_RV = logits_RV.log_softmax(-1)
        probabilities_RV = logprobs_RV.exp()
        surprise_RV = -logprobs_RV - torch.nansum(-probabilities_RV * logprobs_RV, 1, keepdim=True)
        _, order_RV = surprise_RV.abs().nan_to_num(nan=float("inf")).sort()
        reached_R1 = (probabilities_RV.gather(1, order_RV).cumsum(-1) < mass_R1).sum(1, keepdim=True)
        off_RV = torch.arange(size, device=logits_RV.device) > reached_R1
        return off_RV.scatter(1, order_RV, off_RV)

    logits_RV = logits_RV / _column([min(max(p.temperature, COLDEST), HOTTEST) for p in params], logits_RV)
    logits_RV = cut(below_the_kth, [p.top_k for p in params])
    logits_RV = cut(beyond_the_first, [None if p.top_p is None else 1 - p.top_p for p in params])
    logits_RV = cut(unlikely, [p.min_p for p in params])
    return cut(untypical, [p.typical_p for p in params])


def alternatives(logits_RV: Tensor, wanted: dict[int, int]) -> dict[int, tuple[tuple[int, float], ...]]:
    """The likeliest tokens of some rows and their log-probabilities; `wanted` says how many of which rows."""
    rows_XV = logits_RV.index_select(0, uploaded(list(wanted), logits_RV.device))
    best = rows_XV.topk(min(max(wanted.values()), rows_XV.shape[1]))
    logprobs_XK = best.values - rows_XV.logsumexp(1, keepdim=True)
    return {
        row: tuple(zip(ids[:count], logprobs[:count], strict=True))
        for (row, count), ids, logprobs in zip(wanted.items(), best.indices.tolist(), logprobs_XK.tolist(), strict=True)
    }


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A number per row (R, 1), of the dtype and on the device of another tensor."""
    return uploaded(numbers, like.device, dtype=like.dtype)[:, None]


def _refusal(logits_V: Tensor) -> NumericsError:
    """Why no token could be chosen."""
    try:
        require_finite(logits_V)
    except NumericsError as error:
        return error
    return NumericsError("every token is forbidden by bad_words_ids, min_new_tokens or n-grams; loosen them")
