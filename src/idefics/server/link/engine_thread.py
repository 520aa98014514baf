"""The engine in a thread of the server's own process: for an application inside of another program, and for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable

from idefics.processor.tokenizer import Tokenizer
from idefics.server.link.worker import Command, Report, Worker
from idefics.server.model import EngineLike

__all__ = ["EngineThread"]


class EngineThread:
    """Where the engine works: see `EngineLink`. The interpreter is shared with the event loop, which costs both.

    Args:
        engine: used by this thread alone from `start` on.
        tokenizer: of the model.
    """

    def __init__(self, engine: EngineLike, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None

    def start(self, heard: Callable[[Report], None], ended: Callable[[str], None]) -> None:
        """Starts the thread."""
        worker = self._worker = Worker(self._engine, self._tokenizer, heard)

        def work() -> None:
            try:
                worker.run()
            finally:
                ended("the engine's thread ended")

        self._thread = threading.Thread(target=work, name="engine", daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        """Leaves it to the thread."""
        assert self._worker is not None, "not started"
        self._worker.post(command)

    @property
    def alive(self) -> bool:
        """Whether the thread has not left."""
        return self._thread is not None and self._thread.is_alive()

    def kill(self) -> None:
        """Does nothing: a thread cannot be ended in the middle of what it does."""
