"""What the model's calls return: mappings of what there is, whose fields are attributes too, and tuples by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from idefics.engine.request import Completion

__all__ = ["CausalLMOutput", "GenerateOutput"]


class _Output(Mapping[str, Any]):
    """Of all fields those that are not None: by name as of a mapping, by number or slice as of a tuple.

    As in the reference, iteration gives the names; `to_tuple` gives the values.
    """

    def _there(self) -> dict[str, Any]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if value is not None}

    def __getitem__(self, key: Any) -> Any:
        return self._there()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._there())

    def __len__(self) -> int:
        return len(self._there())

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of what there is."""
        return tuple(self._there().values())


@dataclass(eq=False)
class CausalLMOutput(_Output):
    """What `forward` returns.

    Attributes:
        loss: mean cross-entropy of the labels, if there were any.
        logits: (B, T, V), in the model's dtype.
        image_hidden_states: what the decoder looks at, if there were images: (images, latents, hidden) of Idefics2,
            (B, N, latents, features) of IDEFICS.
        past_key_values: always None; `generate` keeps a cache of its own.
        hidden_states: always None; they are not kept.
        attentions: always None; they are not written out.
    """

    loss: Tensor | None
    logits: Tensor
    image_hidden_states: Tensor | None
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None


@dataclass(eq=False)
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
