"""Dictating answers to the engine, to hear what logits it chooses from: through `add` and `step`, as answers are made.

Letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.engine.engine import Engine
from idefics.engine.history import BANNED
from idefics.engine.limits import Limits, token_bytes
from idefics.engine.request import Ended
from idefics.engine.sampling_params import SamplingParams
from idefics.errors import OptionError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

__all__ = ["BLOCK", "Dictated", "Dictation", "dictate", "engine_for"]

BLOCK = 4
"""Tokens of a block: few, so that short prompts lie in several, and images are cut by their ends."""


class Dictation:
    """A guide of one answer: says which token comes next, and keeps the logits from which it would have been chosen.

    Args:
        ids: the answer's tokens. After the last of them one more is chosen freely.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._heard: dict[int, Tensor] = {}

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:  # noqa: ARG002
        """See `LogitFilter`."""
        self._heard[len(answer)] = logits_V.clone()
        if len(answer) == len(self._ids):
            return logits_V
        said = self._ids[len(answer)]
        return torch.full_like(logits_V, BANNED).index_fill_(0, torch.tensor([said], device=logits_V.device), 0.0)

    @property
    def logits(self) -> Tensor:
        """After the prompt and after each dictated token (1 + ids, V)."""
        return torch.stack([self._heard[place] for place in range(len(self._ids) + 1)])


@dataclass(frozen=True, kw_only=True)
class Dictated:
    """What became of prompts that were answered together.

    Attributes:
        logits: of each prompt, after it and after each dictated token (1 + dictated, V).
        tokens: of all prompts.
        found: how many of these were in blocks already.
    """

    logits: list[Tensor]
    tokens: int
    found: int


def engine_for(model: VisionLanguageModel, lengths: Sequence[int], *, graphs: bool | None = None) -> Engine:
    """An engine with room for prompts and answers of these lengths, whose passes are as long as the longest of them.

    So a pass holds several prompts and their images, and prompts, or images among them, are cut where a pass ends.

    Args:
        model: that answers.
        lengths: tokens of each prompt and its answer.
        graphs: as of `Limits`.
    """
    blocks = sum(-(-length // BLOCK) for length in lengths)
    limits = Limits(
        rows=len(lengths),
        tokens=max(lengths),
        block=BLOCK,
        cache_bytes=blocks * BLOCK * max(token_bytes(model).values()),
        graphs=graphs,
    )
    return Engine(model, limits)


def dictate(engine: Engine, prompts: Sequence[ModelInputs], ids: Sequence[int]) -> Dictated:
    """Answers prompts together, each with the same tokens.

    Args:
        engine: with nothing else to do.
        prompts: one row each, without padding.
        ids: what every answer says.

    Raises:
        IdeficsError: a request fails.
    """
    guides = [Dictation(ids) for _ in prompts]
    params = SamplingParams(max_new_tokens=len(ids) + 1)
    before = engine.scheduler.admitted, engine.scheduler.found
    for prompt, guide in zip(prompts, guides, strict=True):
        engine.add(prompt, params, guides=[guide])
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Ended):
                raise event.error or OptionError(f"the request was {event.finish}")
    return Dictated(
        logits=[guide.logits for guide in guides],
        tokens=engine.scheduler.admitted - before[0],
        found=engine.scheduler.found - before[1],
    )
