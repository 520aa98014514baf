"""How everything here is measured: two sides in turns, medians, and the distance to what the machine could do at best."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from idefics.machine.ceilings import Ceilings

__all__ = ["Case", "Side", "compare", "report", "saved"]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "numpy", "pillow", "tokenizers", "triton")


@dataclass(frozen=True, kw_only=True)
class Side:
    """Seconds of one side's runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Side:
        """The side that took these seconds."""
        return cls(median=statistics.median(seconds), least=min(seconds), most=max(seconds))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of work done by both sides.

    Attributes:
        name: what was done.
        ours: this package.
        theirs: transformers, or what `peer` says; None where there is nothing to compare with.
        ratio: theirs over ours, the median over rounds; each round runs both sides next to each other.
        limit: seconds that the machine would need at its measured ceiling, or None.
        target: what `ratio` must reach, or None.
        facts: anything else, by name.
    """

    name: str
    ours: Side
    theirs: Side | None = None
    ratio: float | None = None
    limit: float | None = None
    target: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None or self.ratio is None else self.ratio >= self.target


def compare(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any] | None,
    *,
    rounds: int = 5,
    warmups: int = 1,
    limit: float | None = None,
    target: float | None = None,
    **facts: Any,
) -> Case:
    """Runs both sides in turns, the order changing every round, and takes medians."""
    sides = [ours] if theirs is None else [ours, theirs]
    for side in sides:
        for _ in range(warmups):
            side()
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for index in (range(len(sides)), range(len(sides))[::-1])[number % 2]:
            seconds[index].append(_timed(sides[index]))
    ratio = None
    if theirs is not None:
        ratio = statistics.median(their / our for our, their in zip(*seconds, strict=True))
    return Case(
        name=name,
        ours=Side.of(seconds[0]),
        theirs=None if theirs is None else Side.of(seconds[1]),
        ratio=ratio,
        limit=limit,
        target=target,
        facts=facts,
    )


def _timed(run: Callable[[], Any]) -> float:
    gc.collect()
    _settle()
    began = time.perf_counter()
    run()
    _settle()
    return time.perf_counter() - began


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def hardware() -> str:
    """A short name of what this runs on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name()).replace(" ", "-").lower()
    model = next((line for line in _cpu_info() if line.startswith("model name")), platform.machine())
    able = torch.backends.cpu.get_cpu_capability().lower()
    return f"{len(os.sched_getaffinity(0))}x-{model.split(':')[-1].strip().replace(' ', '-').lower()}-{able}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def report(
    what: str, cases: Sequence[Case], *, reached: Ceilings | None = None, save: bool = True, **facts: Any
) -> Path | None:
    """Prints a table for people and one JSON line last; writes `results/<what>_<hardware>_<date>.json`.

    `facts` are of the whole run.
    """
    print(f"{'':44} {'ours':>10} {'theirs':>10} {'ratio':>7} {'target':>7} {'of limit':>9}")
    for case in cases:
        theirs = "" if case.theirs is None else f"{1000 * case.theirs.median:8.1f}ms"
        ratio = "" if case.ratio is None else f"{case.ratio:6.2f}x"
        target = "" if case.target is None else f"{case.target:6.2f}x"
        limit = "" if case.limit is None else f"{100 * case.limit / case.ours.median:7.1f} %"
        print(f"{case.name:44} {1000 * case.ours.median:8.1f}ms {theirs:>10} {ratio:>7} {target:>7} {limit:>9}")
    content = {
        **facts,
        "ceilings": None if reached is None else asdict(reached),
        "cases": [{**asdict(case), "met": case.met} for case in cases],
    }
    return saved(what, content, save=save)


def saved(what: str, content: Mapping[str, Any], *, save: bool = True) -> Path | None:
    """Prints one JSON line, what was found and where; writes `results/<what>_<hardware>_<date>.json`."""
    document = {
        "what": what,
        "hardware": hardware(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        **content,
    }
    path = None
    if save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{what}_{document['hardware']}_{document['date']}.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))
    return path


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return found.stdout.strip() or None
