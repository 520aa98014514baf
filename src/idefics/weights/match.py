"""The strict comparison of what a checkpoint holds with what its config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from idefics.errors import TensorMismatch
from idefics.weights.rename import RenameTable
from idefics.weights.shards import DTYPES, FLOATS, TensorEntry

__all__ = ["TensorsDiffer", "Wanted", "match"]

SHOWN = 20


@dataclass(frozen=True)
class Wanted:
    """What a model needs of one stored tensor.

    Attributes:
        shape: exactly.
        dtype: exactly; None takes any float.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    def takes(self, dtype: str) -> bool:
        """Whether a tensor of such a dtype, by safetensors' name, will do."""
        return dtype in FLOATS if self.dtype is None else DTYPES.get(dtype) == self.dtype


class TensorsDiffer(TensorMismatch):
    """Tensors that a checkpoint lacks, has too many, or has in another shape or an unusable dtype, by published name.

    Args:
        folder: of the checkpoint.
        missing: needed, not there.
        extra: there, of no use.
        misshapen: name to (shape in the file, shape that the config asks for).
        unusable: name to the dtype in the file, which is not the one due, or for a parameter none that a model computes in.
    """

    def __init__(
        self,
        folder: Path,
        *,
        missing: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
        misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
        unusable: Mapping[str, str] | None = None,
    ) -> None:
        self.missing = missing
        self.extra = extra
        self.misshapen = dict(misshapen or {})
        self.unusable = dict(unusable or {})
        lines = {
            "missing": list(missing),
            "extra": list(extra),
            "of the wrong shape": [f"{name} is {have}, due {want}" for name, (have, want) in self.misshapen.items()],
            f"of a dtype that is none of {', '.join(FLOATS)}, or not that of its buffer": [
                f"{name} ({dtype})" for name, dtype in self.unusable.items()
            ],
        }
        kinds = {kind: found for kind, found in lines.items() if found}
        room = SHOWN // max(1, len(kinds))
        told = (
            f"{len(found)} {kind}: {'; '.join(found[:room])}" + (f" and {len(found) - room} more" if len(found) > room else "")
            for kind, found in kinds.items()
        )
        super().__init__(f"the tensors of {folder} are not those its config.json asks for: {' | '.join(told)}")


def match(
    folder: Path,
    entries: Mapping[str, TensorEntry],
    table: RenameTable,
    wanted: Mapping[str, Wanted],
    *,
    optional: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Pairs every tensor of the files with one of the model's.

    Args:
        folder: named in errors.
        entries: the files' tensors, by published name.
        table: the names.
        wanted: what the model has, by our name.
        optional: of our names, those that the files may leave out.

    Returns:
        Published name to our name.

    Raises:
        TensorsDiffer: the two differ in anything.
    """
    ours = {name: table.ours(name) if table.knows(name) else "" for name in entries}
    pairs = {name: target for name, target in ours.items() if target is not None and target in wanted}
    found = set(pairs.values())
    missing = tuple(table.published(name) for name in wanted if name not in found and name not in optional)
    extra = tuple(sorted(name for name, target in ours.items() if target is not None and target not in wanted))
    misshapen = {
        name: (entries[name].shape, wanted[target].shape)
        for name, target in pairs.items()
        if entries[name].shape != wanted[target].shape
    }
    unusable = {name: entries[name].dtype for name, target in pairs.items() if not wanted[target].takes(entries[name].dtype)}
    if missing or extra or misshapen or unusable:
        raise TensorsDiffer(folder, missing=missing, extra=extra, misshapen=misshapen, unusable=unusable)
    return pairs
