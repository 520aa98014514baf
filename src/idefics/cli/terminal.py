"""What goes to a terminal: answers to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import typer

from idefics.assets import knowledge
from idefics.errors import InputError
from idefics.machine.progress import Steps

__all__ = ["introduce", "one_line", "one_voice", "say", "status", "write"]

# Control characters but tab and newline. A model that reads text off an image must not drive the terminal with it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str, *, end: str = "") -> None:
    """Puts a piece of an answer on stdout at once; a terminal is spared control characters, a file gets all."""
    print(_CONTROL.sub("", text) if sys.stdout.isatty() else text, end=end, flush=True)


def say(text: str) -> None:
    """Tells the user something that is no answer."""
    with suppress(OSError):  # nobody can be told that nobody can be told
        print(text, file=sys.stderr, flush=True)


def introduce(name: str) -> None:
    """Tells whoever sits at a terminal what a model can be asked about, where that is known; pipes are told nothing."""
    known = knowledge(name)
    if known is not None and sys.stdout.isatty() and sys.stderr.isatty():
        say(known)


@contextmanager
def status(doing: str) -> Iterator[Steps | None]:
    """A line on stderr that says what is being done, of how much; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(doing + " {task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda name, done, total: shown.update(task, description=name, completed=done, total=total)


def one_line(error: BaseException | str) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())


def one_voice(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose processes, where `torchrun` started several, are heard once: all but the first say nothing.

    What is wrong with a request is wrong in every process, and the first tells it. Other errors (a full GPU, an unreadable
    disk) may strike one process alone, so they are told by whichever meets them.
    """

    @functools.wraps(command)
    def run(**values: Any) -> None:
        several = values["tensor_parallel"] is not None or os.environ.get("WORLD_SIZE", "1") != "1"
        if not several or os.environ.get("RANK", "0") == "0":
            command(**values)
            return
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            try:
                command(**values)
            except InputError:
                raise typer.Exit(1) from None

    return run
