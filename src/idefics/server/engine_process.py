"""The engine in a process of its own, with an interpreter that no request's text, images or HTTP take from it."""

from __future__ import annotations

import atexit
import io
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from idefics.errors import IdeficsError
from idefics.server.model import EngineLike, ServedModel
from idefics.server.worker import Command, Report, Worker

__all__ = ["EngineProcess"]

log = logging.getLogger(__name__)
LEAVING = 5.0  # seconds that the process has to leave once its pipe is closed


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
        context = multiprocessing.get_context("spawn")  # forked, torch's threads would be missing
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make), name="idefics-engine", daemon=True)
        self._process.start()
        theirs.close()
        atexit.register(self.kill)  # before multiprocessing would ask it to end, which it does not listen to
        try:
            loaded = _unpacked(self._pipe.recv_bytes())
        except EOFError:
            raise IdeficsError(f"the engine's process ended while it loaded the model{self._how()}") from None
        except BaseException:
            self.kill()
            raise
        if isinstance(loaded, BaseException):
            self._process.join(LEAVING)
            raise loaded
        self.model: ServedModel = loaded

    def start(self, heard: Callable[[Report], None], ended: Callable[[str | None], None]) -> None:
        """Begins to read reports."""

        def read() -> None:
            fault: str | None = None
            try:
                while True:
                    heard(_unpacked(self._pipe.recv_bytes()))
            except (EOFError, OSError):
                how = self._how()
                fault = f"the engine's process ended{how}" if how else None
            except Exception as error:
                log.critical("a report could not be read", exc_info=True)
                fault = f"a report of the engine could not be read: {type(error).__name__}"
            ended(fault)

        threading.Thread(target=read, name="reports", daemon=True).start()

    def send(self, command: Command) -> None:
        """Writes it to the process."""
        self._pipe.send_bytes(_packed(command))

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        atexit.unregister(self.kill)
        self._process.kill()
        self._process.join(LEAVING)

    def _how(self) -> str:
        """How the process ended, if not well."""
        self._process.join(LEAVING)
        code = self._process.exitcode
        return "" if code == 0 else f" (exit code {code})"


def _work(pipe: Connection, make: Callable[[], tuple[ServedModel, EngineLike]]) -> None:
    """What the process does."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal or service; the server ends this one
        signal.signal(kind, signal.SIG_IGN)
    worker: Worker | None = None
    ready = threading.Event()

    def read() -> None:
        while True:
            try:
                command = _unpacked(pipe.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)  # the server is no more
            ready.wait()
            assert worker is not None
            worker.post(command)

    threading.Thread(target=read, name="commands", daemon=True).start()
    try:
        model, engine = make()
    except BaseException as error:
        pipe.send_bytes(_packed_error(error))
        return
    worker = Worker(engine, model.processor.tokenizer, lambda report: pipe.send_bytes(_packed(report)))
    ready.set()
    pipe.send_bytes(_packed(model))
    worker.run()


class _Pickler(pickle.Pickler):
    """Writes tensors as bytes. Torch's own way is a file per tensor in shared memory."""

    def reducer_override(self, given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            levels = given.detach().contiguous().flatten().view(torch.uint8).numpy()
            return _tensor, (levels, given.dtype, tuple(given.shape))
        return NotImplemented


def _tensor(levels: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(levels).view(dtype).view(shape)


def _packed(message: object) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return out.getvalue()


def _packed_error(error: BaseException) -> bytes:
    """An error with where it was raised, if nobody meant to; one that cannot be sent by its text."""
    if isinstance(error, Exception) and not isinstance(error, IdeficsError):
        error.add_note(traceback.format_exc())
    try:
        packed = _packed(error)
        _unpacked(packed)
    except Exception:
        told = str(error) if isinstance(error, IdeficsError) else f"{type(error).__name__}: {error}"
        return _packed(IdeficsError(told))
    return packed


def _unpacked(message: bytes) -> Any:
    return pickle.loads(message)
