"""A task's table, from records alone."""

from __future__ import annotations

from collections.abc import Iterable

from idefics.errors import InputError
from idefics.evaluation.metrics.estimate import Estimate, estimate
from idefics.evaluation.records import Record
from idefics.evaluation.task import Task

__all__ = ["scores"]


def scores(task: Task, records: Iterable[Record]) -> dict[str, Estimate]:
    """Mean score of every label, clustered by question.

    Returns:
        Labels in the order in which they are first the broadest of an answer, each followed by the narrower ones beside it in
        the order of their names.

    Raises:
        InputError: an answer is to another task, or to another version of it, or there is none that counts.
    """
    found: dict[str, list[tuple[float, str]]] = {}
    narrower: dict[str, set[str]] = {}
    for record in records:
        if (record.task, record.version) != (task.name, task.version):
            raise InputError(
                f"an answer to {record.task} version {record.version} cannot be scored as one to {task.name} "
                f"version {task.version}; ask again"
            )
        for label in record.labels:
            found.setdefault(label, []).append((task.score(record), record.question))
        if record.labels:
            narrower.setdefault(record.labels[0], set()).update(record.labels[1:])
    if not found:
        raise InputError(f"there are no answers to {task.name} that count")
    order = [label for broadest, rest in narrower.items() for label in (broadest, *sorted(rest))]
    return {label: estimate(*map(list, zip(*found[label], strict=True))) for label in order}
