"""A folder to a model: built without storage, then filled from the mapped files, one tensor at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from idefics.config import Config
from idefics.config.json_files import read_json
from idefics.config.keys import shown
from idefics.errors import CheckpointError
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.memory import explain_out_of_memory, require_free_bytes
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.weights.blank import blank_weights
from idefics.weights.families import build_on_meta, family_of, read_config
from idefics.weights.footprint import main_dtype
from idefics.weights.match import match
from idefics.weights.placement import Device, DeviceMap, Placement
from idefics.weights.shards import DTYPES, Shards, TensorEntry

__all__ = ["Division", "Progress", "load_config", "load_model", "stored_dtype", "unasked_dtype"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""


class Division(Protocol):
    """What one of several processes keeps of a model that they compute together."""

    def divide(self, model: VisionLanguageModel) -> None:
        """Divides a model that has no storage yet; names and shapes stay those of the whole."""

    def share(self, parameter: nn.Parameter, stored: Tensor) -> Tensor:
        """What stays here of a stored tensor: a view."""

    def filled(self, parameter: nn.Parameter, share: Tensor) -> nn.Parameter:
        """The parameter of which this process holds that share."""


class Whole:
    """Everything stays here."""

    def divide(self, model: VisionLanguageModel) -> None:
        """Leaves the model as it is."""

    def share(self, parameter: nn.Parameter, stored: Tensor) -> Tensor:  # noqa: ARG002
        """All of it."""
        return stored

    def filled(self, parameter: nn.Parameter, share: Tensor) -> nn.Parameter:  # noqa: ARG002
        """A plain parameter."""
        return nn.Parameter(share)


def load_config(folder: str | Path, *, allow_unknown: bool = False) -> Config:
    """Reads a checkpoint's `config.json`; `allow_unknown` as in `read_config`.

    Raises:
        CheckpointNotFound: there is none.
        ConfigError: it cannot be honoured.
    """
    return read_config(read_json(Path(folder) / "config.json"), allow_unknown=allow_unknown)


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: Device | DeviceMap = "cpu",
    backend: Backend = "auto",
    progress: Progress | None = None,
    division: Division | None = None,
    allow_unknown: bool = False,
) -> VisionLanguageModel:
    """Loads a checkpoint, strictly, without ever holding its weights twice.

    On the CPU in the stored dtype the parameters are views of the mapped files: nothing is read before it is used, and
    writing to a parameter does not write to the file.

    Args:
        folder: holds `config.json` and the weights.
        dtype: of all parameters; None takes the one that most of the stored bytes are in, or bfloat16 where the family's
            numbers do not fit that.
        device: one device for all, or a map from prefixes of our parameter names to devices (see `Placement`).
        backend: attention implementation.
        progress: told how far it is, after every tensor.
        division: what this process keeps; None for everything.
        allow_unknown: let keys of `config.json` pass that ask for something nobody here knows.

    Warns:
        UserWarning: the family's numbers do not fit the dtype that was asked for, or the stored one; weights are blank;
            unknown keys were let pass.

    Returns:
        The model in eval mode, its parameters trainable; `model.config.dtype` is the dtype it is in.

    Raises:
        CheckpointError: the files are not what they should be (see the kinds of it in `idefics.errors`).
        ConfigError: `config.json` cannot be honoured.
        OptionError: a device cannot be used, or a map does not fit the model.
        OutOfMemory: a device is too small.
    """
    folder = Path(folder)
    config = load_config(folder, allow_unknown=allow_unknown)
    if config.unknown:
        warnings.warn(f"{folder}: taken as if its config.json did not say {shown(config.unknown)}", UserWarning, stacklevel=2)
    placement = Placement(device)
    shards = Shards(folder)
    family = family_of(config)
    table = family.table
    model = build_on_meta(config, backend=backend)
    division = Whole() if division is None else division
    division.divide(model)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    aliases = {name: owners[0] for owners in _owners(model).values() for name in owners[1:]}
    targets = match(folder, shards.entries, table, shapes, optional=frozenset(aliases))
    placement.check(shapes)
    _check_ties(shards, {name: table.published(aliases[ours]) for name, ours in targets.items() if ours in aliases})

    entries = [shards.entries[name] for name in targets]
    stored_as = stored_dtype(entries)
    chosen = dtype if dtype is not None else unasked_dtype(config, stored_as)
    model.config = replace(config, dtype=str(chosen).removeprefix("torch."))
    if chosen in family.overflows:
        warnings.warn(
            f"{folder}: models of this family overflow in {model.config.dtype}, and answers become NaN; use bfloat16",
            UserWarning,
            stacklevel=2,
        )
    elif dtype is None and chosen != stored_as:
        warnings.warn(
            f"{folder}: stored as {str(stored_as).removeprefix('torch.')}, in which models of this family overflow; loaded as "
            f"{model.config.dtype} instead",
            UserWarning,
            stacklevel=2,
        )
    blank = blank_weights(entries)
    if blank.names:
        warnings.warn(f"{folder}: {blank}", UserWarning, stacklevel=2)
    total = sum(entry.bytes for entry in entries)
    doing = f"loading {folder} as {model.config.dtype}"
    reduce = "use a 16-bit dtype, another device, or several devices (a device map)"
    needed = 0
    for name, ours in targets.items():
        entry = shards.entries[name]
        unread = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
        needed += _allocated(division.share(model.get_parameter(ours), unread), chosen, placement.of(ours))
    require_free_bytes(needed, doing, reduce=reduce)
    with explain_out_of_memory(f"{doing} ({readable_bytes(total)} of files)", reduce=reduce):
        done = 0
        for published, stored in shards.read(targets):
            ours = targets[published]
            if ours not in aliases:
                parameter = model.get_parameter(ours)
                share = division.share(parameter, stored).contiguous()
                _replace(model, ours, division.filled(parameter, share.to(placement.of(ours)).to(chosen)))
            done += shards.entries[published].bytes
            if progress is not None:
                progress(done, total)
    for alias, ours in aliases.items():
        _replace(model, alias, model.get_parameter(ours))
    return model.eval()


def stored_dtype(entries: Iterable[TensorEntry]) -> torch.dtype:
    """The dtype that most bytes of a checkpoint are in."""
    return main_dtype((DTYPES[entry.dtype], entry.bytes) for entry in entries)


def unasked_dtype(config: Config, stored: torch.dtype) -> torch.dtype:
    """The dtype that a checkpoint is loaded in where none is asked for: the stored one, unless the family overflows in it.

    >>> from idefics.config.presets import preset
    >>> unasked_dtype(preset("idefics-9b"), torch.float16), unasked_dtype(preset("idefics2-8b"), torch.float16)
    (torch.bfloat16, torch.float16)
    """
    return torch.bfloat16 if stored in family_of(config).overflows else stored


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of every parameter, by its identity; a tied one has several."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, parameter)


def _check_ties(shards: Shards, ties: dict[str, str]) -> None:
    """Refuses a checkpoint whose config ties two tensors that its files hold apart and different."""
    for name, source in ties.items():
        stored = dict(shards.read([name, source]))
        if not torch.equal(stored[name], stored[source]):
            raise CheckpointError(
                f"{shards.folder}: config.json ties {name} to {source} (tie_word_embeddings), but the files hold two different "
                "tensors; set tie_word_embeddings to false to use both"
            )


def _allocated(part: Tensor, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of the CPU's memory that a tensor needs of its own: none where it stays in the file or leaves for a GPU."""
    if device.type != "cpu" or (dtype == part.dtype and part.is_contiguous()):
        return 0
    return part.numel() * dtype.itemsize
