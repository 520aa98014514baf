"""What the steps since the last line of a log came to."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["Meter"]


class Meter:
    """Averages of losses, and percentages of right answers by task; a line of JSON each time it is asked.

    Args:
        path: of the log, which lines are appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def add(self, parts: Mapping[str, float], right: Iterable[tuple[str, bool]] = ()) -> None:
        """Takes in one step.

        Args:
            parts: losses by name.
            right: task of each answer, and whether it was right.
        """
        for name, value in parts.items():
            self._parts[name].append(value)
        for task, correct in right:
            self._asked[task] += 1
            self._right[task] += correct

    def flush(self, **facts: object) -> dict[str, object]:
        """Appends one line to the log and starts anew.

        Args:
            facts: put first.

        Returns:
            The line: facts, mean losses, and `"%task"` for percentages.
        """
        line = {
            **facts,
            **{name: round(sum(values) / len(values), 4) for name, values in self._parts.items()},
            **{f"%{task}": round(100 * self._right[task] / asked, 1) for task, asked in sorted(self._asked.items())},
        }
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self._reset()
        return line

    def _reset(self) -> None:
        self._parts: defaultdict[str, list[float]] = defaultdict(list)
        self._asked: Counter[str] = Counter()
        self._right: Counter[str] = Counter()
