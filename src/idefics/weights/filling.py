"""Which stored tensor becomes which of a model's, in what dtype, and the filling itself, one tensor at a time.

A model's parameters are numbers that it computes with: whatever floats are stored are cast to the one dtype asked for. Its
buffers (what a scheme of fewer bits keeps, linears/scheme.py) are read in exactly the dtype that they were made with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idefics.errors import CheckpointError
from idefics.machine.progress import Progress
from idefics.model.base import VisionLanguageModel
from idefics.weights.division import Division
from idefics.weights.footprint import main_dtype
from idefics.weights.match import Wanted, match
from idefics.weights.placement import Placement
from idefics.weights.rename import RenameTable
from idefics.weights.shards import DTYPES, FLOATS, Shards, TensorEntry

__all__ = ["Filling", "fill", "plan_filling", "stored_dtype"]


@dataclass(frozen=True)
class Filling:
    """What is to be read, and where it goes.

    Attributes:
        targets: published name to our name, of every tensor of the files that the model needs.
        held: the model's tensors, still without storage, by our name.
        aliases: our name of a tied tensor to the name under which it is read.
        entries: of the targets, in their order.
    """

    targets: Mapping[str, str]
    held: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    entries: tuple[TensorEntry, ...]

    @property
    def bytes(self) -> int:
        """Of the files that are read."""
        return sum(entry.bytes for entry in self.entries)

    def memory(self, dtype: torch.dtype, placement: Placement, division: Division) -> int:
        """Bytes of the CPU's memory that the model will take: none for what stays in the files or leaves for a GPU."""
        needed = 0
        for entry, ours in zip(self.entries, self.targets.values(), strict=True):
            if ours in self.aliases:  # compared with the one that is read, and left in the file
                continue
            unread = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            share, becomes = division.share(self.held[ours], unread), _dtype(self.held[ours], dtype)
            if placement.of(ours).type == "cpu" and not (becomes == share.dtype and share.is_contiguous()):
                needed += share.numel() * becomes.itemsize
        return needed


def plan_filling(model: VisionLanguageModel, shards: Shards, table: RenameTable) -> Filling:
    """Pairs the files' tensors with those of a model that has no storage yet.

    Raises:
        CheckpointError: files and model differ in anything, or the files hold two different tensors for tied ones.
    """
    held = dict(_tensors(model))
    owners: dict[int, list[str]] = {}
    for name, tensor in held.items():
        owners.setdefault(id(tensor), []).append(name)
    aliases = {name: names[0] for names in owners.values() for name in names[1:]}
    wanted = {
        name: Wanted(tuple(tensor.shape), None if isinstance(tensor, nn.Parameter) else tensor.dtype)
        for name, tensor in held.items()
    }
    targets = match(shards.folder, shards.entries, table, wanted, optional=frozenset(aliases))
    _check_ties(shards, {name: table.published(aliases[ours]) for name, ours in targets.items() if ours in aliases})
    return Filling(targets, held, aliases, tuple(shards.entries[name] for name in targets))


def fill(
    model: VisionLanguageModel,
    filling: Filling,
    shards: Shards,
    *,
    dtype: torch.dtype,
    placement: Placement,
    division: Division,
    progress: Progress | None = None,
) -> None:
    """Reads every tensor to its place; nothing is held twice.

    Args:
        model: for which the filling was planned.
        filling: of `plan_filling`.
        shards: the files.
        dtype: of all parameters.
        placement: where each goes.
        division: what this process keeps.
        progress: told how far it is, after every tensor.
    """
    done = 0
    for published, stored in shards.read(filling.targets):
        ours = filling.targets[published]
        if ours not in filling.aliases:
            held = filling.held[ours]
            share = division.share(held, stored).contiguous()
            _put(model, ours, division.filled(held, share.to(placement.of(ours)).to(_dtype(held, dtype))))
        done += shards.entries[published].bytes
        if progress is not None:
            progress(done, filling.bytes)
    for alias, ours in filling.aliases.items():
        _put(model, alias, model.get_parameter(ours))


def stored_dtype(entries: Iterable[TensorEntry]) -> torch.dtype:
    """The dtype that most bytes of a checkpoint's floats are in."""
    return main_dtype((FLOATS[entry.dtype], entry.bytes) for entry in entries if entry.dtype in FLOATS)


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _dtype(held: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if isinstance(held, nn.Parameter) else held.dtype


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _check_ties(shards: Shards, ties: Mapping[str, str]) -> None:
    """Refuses a checkpoint whose config ties two tensors that its files hold apart and different."""
    for name, source in ties.items():
        stored = dict(shards.read([name, source]))
        if not torch.equal(stored[name], stored[source]):
            raise CheckpointError(
                f"{shards.folder}: config.json ties {name} to {source} (tie_word_embeddings), but the files hold two different "
                "tensors; set tie_word_embeddings to false to use both"
            )
