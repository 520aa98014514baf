"""A folder to a model: built without storage, then filled from the mapped files, one tensor at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from idefics.config import Config
from idefics.config.json_files import read_json
from idefics.config.keys import shown
from idefics.linears.scheme import Scheme
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.dtypes import dtype_name
from idefics.machine.memory import explain_out_of_memory, require_free_bytes
from idefics.machine.progress import Progress
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.weights.blank import blank_weights
from idefics.weights.division import Division, Whole
from idefics.weights.families import build_on_meta, family_of, read_config
from idefics.weights.filling import Filling, fill, plan_filling, stored_dtype
from idefics.weights.placement import Device, DeviceMap, Placement
from idefics.weights.quantised import refuse_tensors
from idefics.weights.rename import RenameTable
from idefics.weights.shards import DTYPES, Shards

__all__ = ["load_config", "load_model", "unasked_dtype"]


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
    scheme: Scheme | None = None,
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
        scheme: how weights are stored that are no plain matrices; None for plain ones only.
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
    model = build_on_meta(config, backend=backend)
    table = family_of(config).table
    if scheme is None:
        refuse_tensors(folder, shards.entries)
    else:
        scheme.replace(model, _described(shards, table))
    division = Whole() if division is None else division
    division.divide(model)
    filling = plan_filling(model, shards, table)
    placement.check(filling.held)
    stored_as = stored_dtype(filling.entries)
    chosen = dtype if dtype is not None else unasked_dtype(config, stored_as)
    model.config = replace(config, dtype=dtype_name(chosen))
    for warning in _warnings(filling, model.config, chosen, asked=dtype is not None, stored_as=stored_as):
        warnings.warn(f"{folder}: {warning}", UserWarning, stacklevel=2)
    doing = f"loading {folder} as {model.config.dtype}"
    reduce = "use a 16-bit dtype, another device, or several devices (a device map)"
    require_free_bytes(filling.memory(chosen, placement, division), doing, reduce=reduce)
    with explain_out_of_memory(f"{doing} ({readable_bytes(filling.bytes)} of files)", reduce=reduce):
        fill(model, filling, shards, dtype=chosen, placement=placement, division=division, progress=progress)
    return model.eval()


def _described(shards: Shards, table: RenameTable) -> dict[str, Tensor]:
    """Every tensor of the files that the table knows, under our name, without its storage."""
    ours = {name: table.ours(name) for name in shards.entries if table.knows(name)}
    return {
        target: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
        for name, entry in shards.entries.items()
        if (target := ours.get(name)) is not None and entry.dtype in DTYPES
    }


def _warnings(filling: Filling, config: Config, chosen: torch.dtype, *, asked: bool, stored_as: torch.dtype) -> Iterator[str]:
    """What a user is told of weights that load all the same."""
    if chosen in family_of(config).overflows:
        yield f"models of this family overflow in {config.dtype}, and answers become NaN; use bfloat16"
    elif not asked and chosen != stored_as:
        yield (f"stored as {dtype_name(stored_as)}, in which models of this family overflow; loaded as {config.dtype} instead")
    blank = blank_weights(filling.entries)
    if blank.names:
        yield str(blank)


def unasked_dtype(config: Config, stored: torch.dtype) -> torch.dtype:
    """The dtype that a checkpoint is loaded in where none is asked for: the stored one, unless the family overflows in it.

    >>> from idefics.config.presets import preset
    >>> unasked_dtype(preset("idefics-9b"), torch.float16), unasked_dtype(preset("idefics2-8b"), torch.float16)
    (torch.bfloat16, torch.float16)
    """
    return torch.bfloat16 if stored in family_of(config).overflows else stored
