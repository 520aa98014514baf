"""A model to a folder, in the published layout: shards, their index and `config.json`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from idefics.config.json_files import write_json
from idefics.errors import CheckpointError, OptionError
from idefics.machine.dtypes import dtype_name
from idefics.model.base import VisionLanguageModel
from idefics.weights.families import family_of
from idefics.weights.footprint import main_dtype
from idefics.weights.shards import INDEX, SINGLE

__all__ = ["save_model", "shard_index", "shard_names", "split_shards"]

_WEIGHTS = re.compile(rf"{re.escape(SINGLE)}|{re.escape(INDEX)}|model-\d{{5}}-of-\d{{5}}\.safetensors")


def save_model(model: VisionLanguageModel, folder: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Saves weights and config under the published names, so that `load_model` and transformers load them.

    Everything is written and flushed to disk under temporary names before the first file is put in place, `config.json`
    last: an interrupted save leaves the checkpoint that was there as it was. Weight files of a checkpoint that is
    replaced are removed at the end; files of other kinds stay.

    Args:
        model: on any devices. Its config is written with the dtype that its weights are in.
        folder: made if it is not there.
        max_shard_bytes: of one file; a larger tensor gets a file to itself.

    Raises:
        CheckpointError: the folder cannot be written, or the model is arranged so that it cannot be saved.
        OptionError: `max_shard_bytes` is below 1.
    """
    folder = Path(folder)
    if max_shard_bytes < 1:
        raise OptionError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    refusal = model.refusal("saved")
    if refusal is not None:
        raise CheckpointError(refusal)
    table = family_of(model.config).table
    tensors = {table.published(name): parameter.detach() for name, parameter in model.named_parameters()}
    assert not any(tensor.is_meta for tensor in tensors.values()), "a model on the meta device has no weights to save"
    dtype = main_dtype((tensor.dtype, tensor.nbytes) for tensor in tensors.values())
    config = replace(model.config, dtype=dtype_name(dtype))
    shards = split_shards(tensors, max_shard_bytes)
    names = shard_names(len(shards))
    staging = _Staging(folder)
    try:
        for name, shard in zip(names, shards, strict=True):
            save_file({key: value.contiguous() for key, value in shard.items()}, staging.path(name), metadata={"format": "pt"})
        if len(shards) > 1:
            write_json(staging.path(INDEX), shard_index(names, shards), sort_keys=True)
        write_json(staging.path("config.json"), config.to_dict(), sort_keys=True)
        staging.put_in_place()
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and path.name not in staging.names:
                path.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot save to {folder}: {error}") from error
    finally:
        staging.clear()


class _Staging:
    """Files under temporary names in the folder they are meant for (a rename works within one file system only)."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot save to {folder}: {error}") from error
        self._folder = folder
        self._paths: dict[str, Path] = {}

    @property
    def names(self) -> list[str]:
        """The final names, in the order in which they are put in place."""
        return list(self._paths)

    def path(self, name: str) -> Path:
        """Where to write what is to become `name`."""
        self._paths[name] = self._folder / f".{name}.{os.getpid()}.part"
        return self._paths[name]

    def put_in_place(self) -> None:
        """Flushes all files, then renames them."""
        # safetensors makes files that only their owner may read; the last one is plainly made, with the usual rights.
        mode = list(self._paths.values())[-1].stat().st_mode
        for path in self._paths.values():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        for name, path in self._paths.items():
            path.replace(self._folder / name)

    def clear(self) -> None:
        """Removes what was not put in place."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def split_shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors (of any device, meta included) in order, cut where a file would exceed `limit` bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """The published names of `count` weight files."""
    return [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def shard_index(names: Sequence[str], shards: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """The content of the index that says which file holds which tensor."""
    tensors = [tensor for shard in shards for tensor in shard.values()]
    return {
        "metadata": {"total_parameters": sum(t.numel() for t in tensors), "total_size": sum(t.nbytes for t in tensors)},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in sorted(shard)},
    }
