"""The engine in a process of its own, with an interpreter that no request's text, images or HTTP take from it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

from idefics.errors import IdeficsError
from idefics.server.link.worker import Command, Report, Worker
from idefics.server.model import EngineLike, ServedModel
from idefics.server.processes.child import Child
from idefics.server.processes.messages import receive, send, sendable

__all__ = ["EngineProcess"]

log = logging.getLogger(__name__)


class EngineProcess:
    """Where the engine works: see `EngineLink`. The process ends with this one, whatever ends that.

    Args:
        make: called there; loads the model. A function of a module, or a `partial` of one.

    Attributes:
        model: facts of what was loaded.

    Raises:
        IdeficsError: what `make` raised.
    """

    def __init__(self, make: Callable[[], tuple[ServedModel, EngineLike]]) -> None:
        self._child = Child("engine", partial(_work, make))
        try:
            loaded = receive(self._child.pipe)
        except (EOFError, OSError):
            raise IdeficsError(f"the engine's process ended while it loaded the model ({self._how()})") from None
        except BaseException:
            self.kill()
            raise
        if isinstance(loaded, BaseException):
            self.kill()
            raise loaded
        self.model: ServedModel = loaded

    def start(self, heard: Callable[[Report], None], ended: Callable[[str], None]) -> None:
        """Begins to read reports."""

        def read() -> None:
            try:
                while True:
                    heard(receive(self._child.pipe))
            except (EOFError, OSError):
                fault = f"the engine's process ended ({self._how()})"
            except Exception as error:
                log.critical("a report could not be read", exc_info=True)
                fault = f"a report of the engine could not be read: {type(error).__name__}"
            ended(fault)

        threading.Thread(target=read, name="reports", daemon=True).start()

    def send(self, command: Command) -> None:
        """Writes it to the process."""
        send(self._child.pipe, command)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._child.alive

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._child.kill()
        self._child.code()

    def _how(self) -> str:
        """How the process ended, if it says so."""
        code = self._child.code()
        return "it does not say how" if code is None else f"exit code {code}"


def _work(make: Callable[[], tuple[ServedModel, EngineLike]], pipe: Connection) -> None:
    """What the process does."""
    worker: Worker | None = None
    ready = threading.Event()

    def read() -> None:
        while True:
            try:
                command = receive(pipe)
                ready.wait()
                assert worker is not None
                worker.post(command)
                del command  # with its pixels, while nothing comes
            except (EOFError, OSError):
                os._exit(0)  # the server is no more
            except BaseException:  # nothing more would be heard of it
                log.critical("a command could not be read", exc_info=True)
                os._exit(1)

    threading.Thread(target=read, name="commands", daemon=True).start()
    try:
        model, engine = make()
    except BaseException as error:
        send(pipe, sendable(error))
        return

    def tell(report: Report) -> None:
        with contextlib.suppress(OSError):  # the server is no more, which whoever reads from it sees, too
            send(pipe, report)

    worker = Worker(engine, model.processor.tokenizer, tell)
    ready.set()
    send(pipe, model)
    worker.run()
