"""What prompt and answer so far make of the next token's logits: penalties and bans, the same for all ways of searching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idefics.engine.sampling_params import SamplingParams
from idefics.engine.upload import uploaded

__all__ = ["BANNED", "History", "LogitFilter"]

BANNED = float("-inf")


class LogitFilter(Protocol):
    """Forbids (-inf) or reweighs tokens; may change `logits_V` in place and returns it."""

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Filters one row: float32 logits, the prompt's ids and the answer's so far."""
        ...


class Ban(Protocol):
    """Ids that must not come next."""

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """After the prompt's ids and the answer's so far."""
        ...


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes every token of prompt and answer less likely, once.

    Attributes:
        penalty: above 1 to make it so.
        prompt: its tokens, each once.
    """

    penalty: float
    prompt: frozenset[int]

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Divides positive logits, multiplies negative ones."""
        seen = uploaded([*self.prompt, *{*answer}.difference(self.prompt)], logits_V.device)
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
            penalties = [self.frequency * count + self.presence for count in counts.values()]
            device = logits_V.device
            logits_V[uploaded(list(counts), device)] -= uploaded(penalties, device, dtype=logits_V.dtype)
        return logits_V


@dataclass(frozen=True)
class NoRepeatNgram:
    """Forbids what would complete an n-gram that prompt or answer already hold."""

    size: int

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Looks for the last n - 1 tokens earlier in the row."""
        ids = [*prompt, *answer]
        if len(ids) + 1 < self.size:
            return []
        tail = ids[len(ids) - self.size + 1 :]
        return [ids[i + self.size - 1] for i in range(len(ids) - self.size + 1) if ids[i : i + self.size - 1] == tail]


@dataclass(frozen=True)
class BadWords:
    """Forbids the last token of each sequence where its other tokens stand right before."""

    words: tuple[tuple[int, ...], ...]

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Compares the row's end with each sequence's beginning."""
        banned = []
        for *start, last in self.words:
            end = answer[-len(start) :] if len(answer) >= len(start) else [*prompt, *answer][-len(start) :]
            if not start or list(end) == start:
                banned.append(last)
        return banned


@dataclass(frozen=True)
class MinNewTokens:
    """Forbids ending before the answer has `minimum` tokens."""

    minimum: int
    ends: tuple[int, ...]

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:  # noqa: ARG002
        """Every end while the answer is short."""
        return list(self.ends) if len(answer) < self.minimum else []


class History:
    """One answer's penalties and bans, in the published order.

    Args:
        params: which, and how strong.
        prompt: its ids.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._prompt = prompt
        self._penalties: list[LogitFilter] = []
        self._bans: list[Ban] = []
        if params.repetition_penalty != 1.0:
            self._penalties.append(RepetitionPenalty(params.repetition_penalty, frozenset(prompt)))
        if params.frequency_penalty or params.presence_penalty:
            self._penalties.append(CountPenalty(params.frequency_penalty, params.presence_penalty))
        if params.no_repeat_ngram_size:
            self._bans.append(NoRepeatNgram(params.no_repeat_ngram_size))
        if params.bad_words_ids:
            self._bans.append(BadWords(params.bad_words_ids))
        if params.min_new_tokens and params.eos_token_id:
            self._bans.append(MinNewTokens(params.min_new_tokens, params.eos_token_id))

    def reweighed(self, logits_V: Tensor, answer: Sequence[int]) -> Tensor:
        """Logits with the penalties; may be the same tensor, changed."""
        for apply in self._penalties:
            logits_V = apply(logits_V, self._prompt, answer)
        return logits_V

    def banned(self, answer: Sequence[int]) -> list[int]:
        """Ids that must not come next; some may be named twice."""
        return [token for ban in self._bans for token in ban(self._prompt, answer)]
