"""The engine in a process of its own, with an interpreter that no request's text, images or HTTP take from it."""

from __future__ import annotations

import atexit
import contextlib
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
from idefics.server.link.worker import Command, Report, Worker
from idefics.server.model import EngineLike, ServedModel

__all__ = ["EngineProcess"]

log = logging.getLogger(__name__)
LARGE = 2**16  # bytes of a tensor that is sent by itself
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
            loaded = _receive(self._pipe)
        except (EOFError, OSError):
            raise IdeficsError(f"the engine's process ended while it loaded the model ({self._how()})") from None
        except BaseException:
            self.kill()
            raise
        if isinstance(loaded, BaseException):
            self._process.join(LEAVING)
            raise loaded
        self.model: ServedModel = loaded

    def start(self, heard: Callable[[Report], None], ended: Callable[[str], None]) -> None:
        """Begins to read reports."""

        def read() -> None:
            try:
                while True:
                    heard(_receive(self._pipe))
            except (EOFError, OSError):
                fault = f"the engine's process ended ({self._how()})"
            except Exception as error:
                log.critical("a report could not be read", exc_info=True)
                fault = f"a report of the engine could not be read: {type(error).__name__}"
            ended(fault)

        threading.Thread(target=read, name="reports", daemon=True).start()

    def send(self, command: Command) -> None:
        """Writes it to the process."""
        _send(self._pipe, command)

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
        """How the process ended, if it says so."""
        self._process.join(LEAVING)
        code = self._process.exitcode
        return "it does not say how" if code is None else f"exit code {code}"


def _work(pipe: Connection, make: Callable[[], tuple[ServedModel, EngineLike]]) -> None:
    """What the process does."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal or service; the server ends this one
        signal.signal(kind, signal.SIG_IGN)
    worker: Worker | None = None
    ready = threading.Event()

    def read() -> None:
        while True:
            try:
                command = _receive(pipe)
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
        _send(pipe, _sendable(error))
        return

    def tell(report: Report) -> None:
        with contextlib.suppress(OSError):  # the server is no more, which whoever reads from it sees, too
            _send(pipe, report)

    worker = Worker(engine, model.processor.tokenizer, tell)
    ready.set()
    _send(pipe, model)
    worker.run()


class _Pickler(pickle.Pickler):
    """Writes tensors as bytes. Torch's own way is a file per tensor in shared memory."""

    def reducer_override(self, given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            flat = given.detach().contiguous().flatten().view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(flat.data), given.dtype, tuple(given.shape))
        return NotImplemented


def _tensor(buffer: bytearray | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not len(buffer):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).view(shape)


def _send(pipe: Connection, message: object) -> None:
    """Writes a message; what is large in it not through copies, which would hold the interpreter."""
    large: list[pickle.PickleBuffer] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < LARGE:
            return True
        large.append(buffer)
        return False

    out = io.BytesIO()
    _Pickler(out, protocol=5, buffer_callback=stays).dump(message)
    pipe.send_bytes(pickle.dumps([buffer.raw().nbytes for buffer in large]) + out.getvalue())
    for buffer in large:
        pipe.send_bytes(buffer)


def _receive(pipe: Connection) -> Any:
    """Reads a message, which must be of a process of our own.

    Raises:
        EOFError: the other end is no more.
    """
    read = io.BytesIO(pipe.recv_bytes())
    large = [bytearray(size) for size in pickle.load(read)]
    for buffer in large:
        pipe.recv_bytes_into(buffer)
    return pickle.load(read, buffers=large)


def _sendable(error: BaseException) -> BaseException:
    """An error with where it was raised, if nobody meant to; one that cannot be sent as its text."""
    if isinstance(error, Exception) and not isinstance(error, IdeficsError):
        error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return IdeficsError(str(error) if isinstance(error, IdeficsError) else f"{type(error).__name__}: {error}")
    return error
