"""The text of answers while they grow, and where stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence

from idefics.engine.request import Completion, FinishReason, StopCheck
from idefics.engine.sampling_params import SamplingParams
from idefics.processor.detokenizer import TextStream
from idefics.processor.tokenizer import Tokenizer

__all__ = ["AnswerText", "StopWatch", "stop_checks", "text_of"]


class AnswerText:
    """One answer's tokens as text, up to the stop string that ended it. An end token is no part of it, special or not.

    Args:
        tokenizer: of the model.
        stop: strings that end the answer.
        inside: see `TextStream`.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), inside: bool = False) -> None:
        self._stream = TextStream(tokenizer, stop=stop, inside=inside)

    def push(self, ids: Sequence[int], finish: FinishReason | None) -> str:
        """What the next tokens add; never half a character.

        Args:
            ids: in order.
            finish: why the answer ends with the last of them, or None: what was held back then comes, too.
        """
        text = self._stream.push(ids[:-1] if finish == "eos" else ids)
        return text if finish is None else text + self._stream.finish()


class StopWatch:
    """What the engine calls with an answer's ids after each new one; True once a stop string is complete.

    Args:
        tokenizer: of the model.
        stop: strings that end the answer.
        inside: see `TextStream`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, inside: bool = False) -> None:
        self._text = TextStream(tokenizer, stop=stop, inside=inside)

    def __call__(self, ids: Sequence[int]) -> bool:
        """Whether the answer ends here."""
        self._text.push(ids[-1])
        return self._text.stopped is not None


def stop_checks(tokenizer: Tokenizer, params: SamplingParams, *, prompts: int) -> list[StopCheck] | None:
    """What `Engine.generate` and `Engine.stream` take as `stops`; None where nothing stops an answer.

    Args:
        tokenizer: of the model.
        params: of every prompt.
        prompts: how many there are.
    """
    if not params.stop:
        return None
    if params.num_beams == 1:
        return [StopWatch(tokenizer, params.stop) for _ in range(prompts * params.candidates)]

    def stopped(ids: Sequence[int]) -> bool:  # a beam is no other's continuation: each is read anew
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return any(stop in text for stop in params.stop)

    return [stopped] * prompts


def text_of(tokenizer: Tokenizer, completion: Completion, stop: Sequence[str]) -> str:
    """A whole answer's text."""
    return AnswerText(tokenizer, stop=stop).push(completion.token_ids, completion.finish)
