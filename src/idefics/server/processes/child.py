"""A process of the server's own: it begins with a fresh interpreter, and ends with the server, whatever ends that."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import FunctionType
from typing import Any

from idefics.errors import OptionError
from idefics.server.processes.messages import receive, send

__all__ = ["LEAVING", "Child"]

LEAVING = 5.0  # seconds that a process has to leave once it was told to, or killed
_BEGIN = "from idefics.server.processes.child import main; main()"


class Child:
    """A process, and this end of a pipe to it.

    It is no fork, which would lack this process's threads, and not `multiprocessing`'s, which would run the program once more
    that this server is part of.

    Args:
        role: what lists of processes show.
        work: called there with the other end. A function of a module, or a `partial` of one. When the pipe ends, this process
            has, and so must that one.
        environment: variables on top of this process's.

    Attributes:
        pipe: this end.

    Raises:
        OptionError: `work` is of no module that another process could import.
        OSError: no process can be had.
    """

    def __init__(self, role: str, work: Callable[[Connection], None], environment: Mapping[str, str] | None = None) -> None:
        if any(function.__module__ == "__main__" for function in _functions(work)):
            raise OptionError(
                "another process cannot find a function of the program that runs (__main__); "
                "put it into a module of its own and import it from there"
            )
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        self.pipe, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BEGIN, f"idefics-{role}", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
            )
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()
        atexit.register(self._end)
        with contextlib.suppress(OSError):  # it has ended, which whoever reads from it sees
            send(self.pipe, work)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def code(self, seconds: float = LEAVING) -> int | None:
        """Its exit code, or the signal that ended it as a negative number, if it ends within so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Ends it, whatever it does; `code` waits for it."""
        atexit.unregister(self._end)
        self._process.kill()

    def _end(self) -> None:
        self.kill()
        self.code()


def _functions(work: Any) -> Iterator[Any]:
    """Those that `work` is made of."""
    if isinstance(work, partial):
        for each in (work.func, *work.args, *work.keywords.values()):
            yield from _functions(each)
    elif isinstance(work, FunctionType):
        yield work


def main() -> None:
    """What the process does; its arguments are its role and the number of the pipe."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal or service; the server ends this one
        signal.signal(kind, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[2]))
    try:
        work = receive(pipe)
    except (EOFError, OSError):
        return
    work(pipe)
