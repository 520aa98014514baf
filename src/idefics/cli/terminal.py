"""What goes to a terminal: answers to stdout, everything else to stderr."""

from __future__ import annotations

import re
import sys

__all__ = ["one_line", "say", "write"]

# Control characters but tab and newline. A model that reads text off an image must not drive the terminal with it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str, *, end: str = "") -> None:
    """Puts a piece of an answer on stdout at once; a terminal is spared control characters, a file gets all."""
    print(_CONTROL.sub("", text) if sys.stdout.isatty() else text, end=end, flush=True)


def say(text: str) -> None:
    """Tells the user something that is no answer."""
    print(text, file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())
