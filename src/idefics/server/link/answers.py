"""What is said of an answer with each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics.asking.text import AnswerText
from idefics.engine.request import FinishReason, Token
from idefics.processor.tokenizer import Tokenizer

__all__ = ["Said", "Sayer"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """One token of an answer, and the text that is certain with it.

    Attributes:
        candidate: which of the request's answers.
        id: token id.
        text: what it adds; with the last token, also what was held back. Never half a character.
        logprob: log-probability under the model.
        top: the likeliest alternatives (id, log-probability), if asked for.
        finish: why the answer ends here, or None.
        at: `time.monotonic` when it was chosen.
    """

    candidate: int
    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish: FinishReason | None
    at: float


class Sayer:
    """Turns one answer's tokens into text, up to or with the stop string that ended it.

    Args:
        tokenizer: of the model.
        stop: strings that end the answer.
        stop_ids: ids that end it because a stop string is that token.
        keep_stop: whether a stop string that ended the answer is part of it.
        inside: see `AnswerText`.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str], stop_ids: frozenset[int], keep_stop: bool, inside: bool
    ) -> None:
        self._text = AnswerText(tokenizer, stop=() if keep_stop else stop, inside=inside)
        self._stop_ids = stop_ids

    def said(self, token: Token, *, at: float) -> Said:
        """A token with its text; tokens come in order."""
        finish = token.finish
        text = self._text.push([token.id], finish)
        if finish == "eos" and token.id in self._stop_ids:
            finish = "stop"
        return Said(
            candidate=token.candidate,
            id=token.id,
            text=text,
            logprob=token.logprob,
            top=token.top,
            finish=finish,
            at=at,
        )
