"""What is asked of the engine and what comes back. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Completion", "Ended", "Event", "FinishReason", "StopCheck", "Token"]

FinishReason = Literal["eos", "stop", "length", "cancelled", "deadline", "error"]
"""Why an answer ended: an end token, a stop string, or no room; or from outside: nobody wants it any more, its time is over,
or it cannot be computed."""

StopCheck = Callable[[Sequence[int]], bool]
"""Given an answer's ids after each new one, says whether it ends here. The engine knows no text: whoever does, watches
for stop strings. They are shown the answer itself, which grows: what is to be kept must be copied."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One generated token.

    Attributes:
        row: which prompt: its place in a batch, or the number that `Engine.add` returned.
        candidate: which of its answers.
        id: token id.
        logprob: log-probability under the model, before temperature and filters.
        top: the likeliest alternatives (id, log-probability), if asked for.
        finish: why the answer ends with this token, or None.
        planned: `time.monotonic` when the answer first got a place in a pass; two tokens are equal whatever it is.
    """

    row: int
    candidate: int
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish: FinishReason | None
    planned: float | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One answer ended without a token.

    Attributes:
        row: as of `Token`.
        candidate: as of `Token`.
        finish: `"cancelled"`, `"deadline"` or `"error"`.
        error: what went wrong, for the latter.
    """

    row: int
    candidate: int
    finish: FinishReason
    error: Exception | None = None


Event = Token | Ended


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One whole answer.

    Attributes:
        token_ids: generated ids, the end token included if there was one.
        logprobs: one per token; empty for beams.
        top: alternatives of each token, if asked for.
        score: mean log-probability, or a beam's score.
        finish: why it ended.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    score: float
    finish: FinishReason

    @classmethod
    def of(cls, tokens: Sequence[Token]) -> Completion:
        """The answer that these tokens are; the last must say how it ends."""
        finish = tokens[-1].finish
        assert finish is not None, "an unfinished answer"
        return cls(
            token_ids=tuple(token.id for token in tokens),
            logprobs=tuple(token.logprob for token in tokens),
            top=tuple(token.top for token in tokens),
            score=sum(token.logprob for token in tokens) / len(tokens),
            finish=finish,
        )
