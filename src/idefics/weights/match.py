"""The strict comparison of what a checkpoint holds with what its config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from idefics.errors import TensorMismatch
from idefics.weights.rename import RenameTable
from idefics.weights.shards import DTYPES, TensorEntry

__all__ = ["TensorsDiffer", "match"]

SHOWN = 20


class TensorsDiffer(TensorMismatch):
    """Tensors that a checkpoint lacks, has too many, or has in another shape or an unusable dtype, by published name.

    Args:
        folder: of the checkpoint.
        missing: needed, not there.
        extra: there, of no use.
        misshapen: name to (shape in the file, shape that the config asks for).
        unusable: name to the dtype in the file, which is none that a model computes in.
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
            f"of a dtype other than {', '.join(DTYPES)}": [f"{name} ({dtype})" for name, dtype in self.unusable.items()],
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
    shapes: Mapping[str, tuple[int, ...]],
    *,
    optional: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Pairs every tensor of the files with a parameter.

    Args:
        folder: named in errors.
        entries: the files' tensors, by published name.
        table: the names.
        shapes: the parameters' shapes, by our name.
        optional: of our names, those that the files may leave out.

    Returns:
        Published name to our name.

    Raises:
        TensorsDiffer: the two differ in anything.
    """
    ours = {name: table.ours(name) if table.knows(name) else "" for name in entries}
    pairs = {name: target for name, target in ours.items() if target is not None and target in shapes}
    found = set(pairs.values())
    missing = tuple(table.published(name) for name in shapes if name not in found and name not in optional)
    extra = tuple(sorted(name for name, target in ours.items() if target is not None and target not in shapes))
    misshapen = {
        name: (entries[name].shape, shapes[target]) for name, target in pairs.items() if entries[name].shape != shapes[target]
    }
    unusable = {name: entries[name].dtype for name in pairs if entries[name].dtype not in DTYPES}
    if missing or extra or misshapen or unusable:
        raise TensorsDiffer(folder, missing=missing, extra=extra, misshapen=misshapen, unusable=unusable)
    return pairs
