"""What the model's calls return: fields by name and, those that are not None, by position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from idefics.engine.request import Completion

__all__ = ["CausalLMOutput", "GenerateOutput"]


class _Output:
    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return getattr(self, key)
        return [value for value in self if value is not None][key]

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


@dataclass
class CausalLMOutput(_Output):
    """What `forward` returns.

    Attributes:
        loss: mean cross-entropy of the labels, if there were any.
        logits: (B, T, V), in the model's dtype.
        image_hidden_states: what the decoder looks at, if there were images: (images, latents, hidden) of Idefics2,
            (B, N, latents, features) of IDEFICS.
    """

    loss: Tensor | None
    logits: Tensor
    image_hidden_states: Tensor | None


@dataclass
class GenerateOutput(_Output):
    """What `generate(return_dict_in_generate=True)` returns.

    Attributes:
        sequences: (B * n, T) prompts and answers.
        sequences_scores: (B * n,) mean log-probabilities, or beams' scores.
        completions: the answers in detail, per prompt.
    """

    sequences: Tensor
    sequences_scores: Tensor
    completions: list[list[Completion]]
