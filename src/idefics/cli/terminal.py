"""What goes to a terminal: answers to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import typer

from idefics.errors import InputError

__all__ = ["one_line", "one_voice", "say", "write"]

# Control characters but tab and newline. A model that reads text off an image must not drive the terminal with it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str, *, end: str = "") -> None:
    """Puts a piece of an answer on stdout at once; a terminal is spared control characters, a file gets all."""
    print(_CONTROL.sub("", text) if sys.stdout.isatty() else text, end=end, flush=True)


def say(text: str) -> None:
    """Tells the user something that is no answer."""
    print(text, file=sys.stderr, flush=True)


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
