"""From logits to a token: filters that forbid or reweigh, then a choice. Small objects, composed in `Sampler` alone.

Filters see one row: logits float32 (V,), the prompt's ids and the answer's so far. The order is the published one: what
depends on history first, then what must not be generated, then temperature, then the cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from idefics.engine.sampling_params import SamplingParams
from idefics.engine.upload import uploaded
from idefics.errors import NumericsError

__all__ = ["Choice", "LogitFilter", "Sampler", "choose", "history_filters", "likeliest", "require_finite"]

BANNED = float("-inf")


class LogitFilter(Protocol):
    """Forbids (-inf) or reweighs tokens; may change `logits_V` in place and returns it."""

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Filters one row."""
        ...


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes every token of prompt and answer less likely, once."""

    penalty: float

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Divides positive logits, multiplies negative ones."""
        seen = torch.tensor(sorted({*prompt, *answer}), device=logits_V.device)
        scores = logits_V[seen]
        logits_V[seen] = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return logits_V


@dataclass(frozen=True)
class CountPenalty:
    """Subtracts `frequency` per occurrence in the answer and `presence` once."""

    frequency: float
    presence: float

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Counts the answer only: a prompt may repeat itself."""
        if answer:
            counts = Counter(answer)
            penalties = torch.tensor([self.frequency * count + self.presence for count in counts.values()])
            logits_V[torch.tensor(list(counts), device=logits_V.device)] -= penalties.to(logits_V)
        return logits_V


@dataclass(frozen=True)
class NoRepeatNgram:
    """Forbids what would complete an n-gram that prompt or answer already hold."""

    size: int

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Looks for the last n - 1 tokens earlier in the row."""
        ids = [*prompt, *answer]
        if len(ids) + 1 < self.size:
            return logits_V
        tail = ids[len(ids) - self.size + 1 :]
        banned = [ids[i + self.size - 1] for i in range(len(ids) - self.size + 1) if ids[i : i + self.size - 1] == tail]
        if banned:
            logits_V[torch.tensor(banned, device=logits_V.device)] = BANNED
        return logits_V


@dataclass(frozen=True)
class BadWords:
    """Forbids the last token of each sequence where its other tokens stand right before."""

    words: tuple[tuple[int, ...], ...]

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Compares the row's end with each sequence's beginning."""
        banned = []
        for *start, last in self.words:
            end = answer[-len(start) :] if len(answer) >= len(start) else [*prompt, *answer][-len(start) :]
            if not start or list(end) == start:
                banned.append(last)
        if banned:
            logits_V[torch.tensor(banned, device=logits_V.device)] = BANNED
        return logits_V


@dataclass(frozen=True)
class MinNewTokens:
    """Forbids ending before the answer has `minimum` tokens."""

    minimum: int
    ends: tuple[int, ...]

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Bans every end while the answer is short."""
        if len(answer) < self.minimum:
            logits_V[torch.tensor(self.ends, device=logits_V.device)] = BANNED
        return logits_V


def history_filters(params: SamplingParams) -> list[LogitFilter]:
    """The filters that greedy search, sampling and beam search share, in order."""
    filters: list[LogitFilter] = []
    if params.repetition_penalty != 1.0:
        filters.append(RepetitionPenalty(params.repetition_penalty))
    if params.frequency_penalty or params.presence_penalty:
        filters.append(CountPenalty(params.frequency_penalty, params.presence_penalty))
    if params.no_repeat_ngram_size:
        filters.append(NoRepeatNgram(params.no_repeat_ngram_size))
    if params.bad_words_ids:
        filters.append(BadWords(params.bad_words_ids))
    if params.min_new_tokens and params.eos_token_id:
        filters.append(MinNewTokens(params.min_new_tokens, params.eos_token_id))
    return filters


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


def cut_tail(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Temperature, then top-k, top-p, min-p and typical-p, each over what the one before left; at least one token stays."""
    logits_V = logits_V / params.temperature
    if params.top_k is not None and params.top_k < len(logits_V):
        least = logits_V.topk(params.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, BANNED)
    if params.top_p is not None:
        ordered, order = logits_V.sort()
        # From the unlikeliest up: whatever lies within the last 1 - p of probability goes.
        cut = ordered.softmax(-1).cumsum(-1) <= 1 - params.top_p
        cut[-1] = False
        logits_V = logits_V.masked_fill(cut.scatter(0, order, cut), BANNED)
    if params.min_p is not None:
        probabilities = logits_V.softmax(-1)
        logits_V = logits_V.masked_fill(probabilities < params.min_p * probabilities.max(), BANNED)
    if params.typical_p is not None:
        logprobs = logits_V.log_softmax(-1)
        probabilities = logprobs.exp()
        surprise = -logprobs - torch.nansum(-probabilities * logprobs)
        _, order = surprise.abs().nan_to_num(nan=float("inf")).sort()
        reached = int((probabilities[order].cumsum(-1) < params.typical_p).sum())
        cut = torch.ones_like(logits_V, dtype=torch.bool)
        cut[order[: reached + 1]] = False
        logits_V = logits_V.masked_fill(cut, BANNED)
    return logits_V


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
class PlainBans:
    """What greedy decoding must not choose, where that follows from the answer's length alone."""

    always: tuple[int, ...]
    ends: tuple[int, ...]
    minimum: int

    @classmethod
    def of(cls, params: SamplingParams) -> PlainBans | None:
        """None where choosing is not as simple as that."""
        rest = replace(params, bad_words_ids=(), min_new_tokens=0)
        if params.do_sample or params.logprobs or history_filters(rest) or any(len(word) > 1 for word in params.bad_words_ids):
            return None
        return cls(tuple(word[0] for word in params.bad_words_ids), params.eos_token_id, params.min_new_tokens)

    def after(self, tokens: int) -> tuple[int, ...]:
        """The ids that must not come after so many."""
        return self.always if tokens >= self.minimum else (*self.always, *self.ends)


class Sampler:
    """One request's way of choosing tokens, with its own generator; a guide, if there is one, filters last."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], *, stream: int = 0, guide: LogitFilter | None = None
    ) -> None:
        self.params = params
        self.prompt = list(prompt)
        self.filters = [*history_filters(params), *([] if guide is None else [guide])]
        self.plain = PlainBans.of(params) if guide is None else None
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            # Candidates of one request draw from streams of their own, each reproducible alone.
            self.generator.manual_seed((params.seed + 0x9E3779B97F4A7C15 * stream) % 2**63)

    def choose(self, logits_V: Tensor, answer: Sequence[int]) -> Choice:
        """Picks the next token.

        Args:
            logits_V: float32, the model's own; not changed.
            answer: tokens chosen so far.

        Raises:
            NumericsError: the logits hold NaN or infinities, or nothing is left to choose.
        """
        require_finite(logits_V)
        filtered = logits_V.clone()
        for apply in self.filters:
            filtered = apply(filtered, self.prompt, answer)
        if self.params.do_sample:
            probabilities = cut_tail(filtered, self.params).softmax(-1).cpu()
            if torch.isnan(probabilities).any():
                raise NumericsError("every token is forbidden by bad_words_ids, min_new_tokens or n-grams; loosen them")
            token = int(torch.multinomial(probabilities, 1, generator=self.generator))
        else:
            token = int(filtered.argmax())
            if filtered[token] == BANNED:
                raise NumericsError("every token is forbidden by bad_words_ids, min_new_tokens or n-grams; loosen them")
        logprobs = logits_V.log_softmax(-1)
        top: tuple[tuple[int, float], ...] = ()
        if self.params.logprobs:
            values, ids = logprobs.topk(min(self.params.logprobs, len(logprobs)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Choice(token=token, logprob=float(logprobs[token]), top=top)


def choose(rows: Sequence[tuple[Sampler, Tensor, Sequence[int]]]) -> list[Choice | Exception]:
    """The next token of several answers; plain greedy ones are chosen together.

    Args:
        rows: of each answer its sampler, float32 logits (V,) on one device, and the tokens chosen so far.

    Returns:
        Of each its choice, or the error that concerns it alone.
    """
    plain = [(i, sampler.plain, answer) for i, (sampler, _, answer) in enumerate(rows) if sampler.plain is not None]
    chosen: list[Choice | Exception | None] = [None] * len(rows)
    if plain:
        logits_RV = torch.stack([rows[i][1] for i, _, _ in plain])
        best_R3 = likeliest(logits_RV, [bans.after(len(answer)) for _, bans, answer in plain])
        for (i, _, _), (token, logprob, fine) in zip(plain, best_R3.tolist(), strict=True):
            chosen[i] = Choice(token=int(token), logprob=logprob) if fine else None
    return [choice if choice is not None else _alone(*row) for choice, row in zip(chosen, rows, strict=True)]


def likeliest(logits_RV: Tensor, banned: Sequence[Sequence[int]]) -> Tensor:
    """Each row's likeliest token, without waiting for a GPU: whoever reads the result waits, once.

    Args:
        logits_RV: float32; not changed.
        banned: of each row the tokens it must not choose.

    Returns:
        float64 (R, 3): the token, its log-probability before any ban, and 1 where the row's logits are numbers and something
        was left to choose, else 0.
    """
    allowed_RV = logits_RV.clone()
    places = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    if places:
        row_X, token_X = uploaded(places, logits_RV.device).unbind(1)
        # A number from Python would be sent as a tensor by itself; this one is made where it is needed.
        allowed_RV.index_put_((row_X, token_X), torch.full((), BANNED, device=logits_RV.device))
    best = allowed_RV.max(1)
    logprobs = logits_RV.gather(1, best.indices[:, None])[:, 0] - logits_RV.logsumexp(1)
    good = torch.isfinite(logits_RV).all(1) & torch.isfinite(best.values)
    return torch.stack([best.indices.double(), logprobs.double(), good.double()], dim=1)


def _alone(sampler: Sampler, logits_V: Tensor, answer: Sequence[int]) -> Choice | Exception:
    try:
        return sampler.choose(logits_V, answer)
    except Exception as error:  # of a guide that somebody handed over, too
        return error
