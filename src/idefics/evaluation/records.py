"""What was asked and said, kept so that it can be scored again without a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from idefics.errors import InputError

__all__ = ["Record", "read_records", "write_records"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answer.

    Attributes:
        task: name of the task that asked.
        version: of the task; answers to another version's questions are others.
        question: names the question within the task; turns of one conversation share it.
        turn: which of the question's answers this is, from 0.
        labels: rows of the task's table that the answer counts for; none for what is asked on the way only.
        asked: the last message before the answer, without images.
        expected: what is right.
        answer: what the model said.
    """

    task: str
    version: int
    question: str
    turn: int
    labels: tuple[str, ...]
    asked: str
    expected: str
    answer: str


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes one line of JSON per record."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """Reads what `write_records` wrote.

    Raises:
        InputError: the file cannot be read, or a line is no record; names the line.
    """
    try:
        # Not splitlines(), which also cuts at marks that JSON allows within a text, such as U+2028.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line]


def _record(line: str, where: str) -> Record:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    names = {field.name for field in fields(Record)}
    if not isinstance(found, dict) or set(found) != names:
        given = ", ".join(sorted(found)) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{where} is no record of an answer: it holds {given} instead of {', '.join(sorted(names))}")
    texts = [found[name] for name in ("task", "question", "asked", "expected", "answer")]
    labels = found["labels"]
    if not isinstance(labels, list) or not all(isinstance(text, str) for text in (*texts, *labels)):
        raise InputError(f"{where} holds something else where texts are due")
    if any(type(found[name]) is not int for name in ("version", "turn")):
        raise InputError(f"{where} holds something else where numbers are due: version, turn")
    return Record(**{**found, "labels": tuple(labels)})
