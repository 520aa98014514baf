"""Samples to what one step of training takes: padded inputs of the model, and the label of every token.

Letters: B samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from idefics.data.labels import labelled
from idefics.data.sample import Sample
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.processor.base import Processor

__all__ = ["Batch", "collate", "padded"]


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        inputs: padded at the right; images in their own sizes.
        answers_BT: int64; for each token which learned message of its sample it belongs to, counted from 0; -1 for none.
    """

    inputs: ModelInputs
    answers_BT: Tensor

    def labels(self, ignored: int) -> Tensor:
        """The ids of what is learned, `ignored` everywhere else."""
        return torch.where(self.answers_BT >= 0, self.inputs.input_ids_BT, ignored)

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return int((self.answers_BT >= 0).sum())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`, pixels (and only pixels) in `dtype`."""
        return replace(self, inputs=self.inputs.to(device, dtype), answers_BT=self.answers_BT.to(device=device))


def collate(samples: Sequence[Sample], processor: Processor) -> Batch:
    """Samples as the checkpoint's own template, tokenizer and image settings make them.

    Args:
        samples: at least one, each with something to learn.
        processor: of the checkpoint that is trained.

    Raises:
        InputError: there is no sample, or one of them cannot be learned from; see `labelled`.
        ImageError: an image cannot be used.
        TemplateError: see `labelled`.
    """
    if not samples:
        raise InputError("a batch of no samples; give at least one")
    rows = [labelled(sample, processor) for sample in samples]
    inputs = processor.inputs([row.prompt for row in rows], [sample.images for sample in samples], padding_side="right")
    ids = padded([row.ids for row in rows], 0)
    mask_BT = inputs.attention_mask_BT.bool()
    assert torch.equal(ids[mask_BT], inputs.input_ids_BT[mask_BT]), "labels were made of other tokens than inputs"
    return Batch(inputs, padded([row.answers for row in rows], -1))


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of unequal length as one tensor (B, T), filled at the right."""
    out_BT = torch.full((len(rows), max(map(len, rows))), fill)
    for row_T, values in zip(out_BT, rows, strict=True):
        row_T[: len(values)] = torch.tensor(values)
    return out_BT
