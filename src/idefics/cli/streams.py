"""The streams that a shell hands over: they may be closed, full, somebody's who left, or hold what is no text."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from idefics.cli.terminal import one_line, say
from idefics.errors import IdeficsError, InputError

__all__ = ["as_text", "prepare_streams", "stdin_lines", "stdin_text", "told"]

MAX_STDIN = 16 * 2**20
"""Characters of a question, or of a line, that are read from stdin."""


class _Closed(io.TextIOBase):
    """Stands for a stdout that was closed before we began: whoever writes to it is told."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.EBADF, "it is closed")


def prepare_streams() -> None:
    """Makes the standard streams safe to use whatever state they are in.

    Numbers 0 to 2 that are closed are taken, so that no model's file or socket gets one of them and what others print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (for the life of the process)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def as_text(words: str, what: str) -> str:
    """Words of a command line or of stdin as text, whatever the locale made of them.

    Args:
        words: as Python decoded them; bytes that it could not decode are half surrogates.
        what: how an error calls them.

    Raises:
        InputError: the bytes are no UTF-8.
    """
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        pass
    else:
        return words
    try:
        return os.fsencode(words).decode("utf-8")
    except UnicodeError:
        raise InputError(f"{what} is not UTF-8 text; write it in UTF-8") from None


def stdin_text(what: str) -> str:
    """All of stdin.

    Args:
        what: how an error calls it.

    Raises:
        InputError: stdin is closed, holds no UTF-8 text, or more than `MAX_STDIN` characters.
    """
    if sys.stdin is None:
        raise InputError(f"{what} should come from stdin, which is closed")
    text = sys.stdin.read(MAX_STDIN + 1)
    if len(text) > MAX_STDIN:
        raise InputError(f"{what} from stdin is longer than the limit of {MAX_STDIN} characters")
    return as_text(text, f"{what} from stdin")


def stdin_lines() -> Iterator[str]:
    """The lines of stdin, without their ends; names of files in them may hold what is no UTF-8.

    Raises:
        InputError: stdin is closed, or a line is longer than `MAX_STDIN`.
    """
    if sys.stdin is None:
        raise InputError("questions should come from stdin, a line each, and it is closed")
    while line := sys.stdin.readline(MAX_STDIN):
        if len(line) == MAX_STDIN:
            raise InputError(f"a line from stdin is longer than the limit of {MAX_STDIN} characters")
        yield line.rstrip("\n")


@contextmanager
def told() -> Iterator[None]:
    """Errors are told in one line, and become the exit codes that the command line's head lists."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # at exit, Python would complain by itself
    except IdeficsError as error:
        say(f"error: {one_line(error)}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say("")
        raise typer.Exit(130) from None
    except OSError as error:
        raise typer.Exit(_told(error)) from None
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # as rich leaves, when it prints to nobody
            raise typer.Exit(_told(left.__context__)) from None
        raise
    except Exception as error:
        if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
            raise  # typer's own, which it tells itself
        # A fault of ours, and still no reason to show people our code unasked.
        say(
            f"error: {type(error).__name__}: {one_line(error)[:500]}; this is a fault of idefics itself: run it again with "
            "--debug and report what it prints"
        )
        raise typer.Exit(1) from None


def _told(error: OSError) -> int:
    """Tells of a file or stream that failed; the exit code."""
    fault = _fault_of_stdout()
    if fault is not None or isinstance(error, BrokenPipeError):
        # Python would complain once more when it flushes stdout at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 141
    what = "stdout cannot be written: " if fault is not None else f"{error.filename}: " if error.filename else ""
    say(f"error: {what}{one_line(error.strerror or str(error) or type(error).__name__)}")
    return 1


def _fault_of_stdout() -> OSError | None:
    if isinstance(sys.stdout, _Closed):
        return OSError(errno.EBADF, "it is closed")
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None
