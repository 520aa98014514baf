"""What people get back: answers and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idefics.engine.request import FinishReason

__all__ = ["Answer", "Score", "as_asked"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the answer; a stop string that ended it is not part of it.
        token_ids: generated ids, the end token included.
        logprobs: log-probability of each under the model; empty for beams.
        top: alternatives of each token (id, log-probability), if asked for.
        score: mean log-probability, or a beam's score.
        finish: `"eos"`, `"stop"` or `"length"`.
        prompt_tokens: length of the prompt, image tokens included.
        image_tokens: image tokens among them.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    score: float
    finish: FinishReason
    prompt_tokens: int
    image_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a continuation is.

    Attributes:
        logprob: natural log of its probability after the prompt.
        token_logprobs: of each of its tokens.
        greedy: whether greedy decoding would produce it.
    """

    logprob: float
    token_logprobs: tuple[float, ...]
    greedy: bool


def as_asked(answers: Sequence[Answer], *, details: bool, several: bool) -> Any:
    """The answers of one prompt as they were asked for: texts or with details, one or a list."""
    values: list[Any] = list(answers) if details else [answer.text for answer in answers]
    return values if several else values[0]
