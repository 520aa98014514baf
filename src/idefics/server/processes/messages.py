"""Messages between two processes of the server, over a pipe."""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from idefics.errors import IdeficsError

__all__ = ["receive", "send", "sendable"]

LARGE = 2**16  # bytes of a tensor or an array that is sent by itself


class _Pickler(pickle.Pickler):
    """Writes tensors as bytes. Torch's own way is a file per tensor in shared memory, of which containers have little."""

    def reducer_override(self, given: Any) -> Any:
        torch = sys.modules.get("torch")  # a process that never imported it holds no tensor
        if torch is not None and isinstance(given, torch.Tensor):
            flat = given.detach().contiguous().flatten().view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(flat.data), given.dtype, tuple(given.shape))
        return NotImplemented


def _tensor(buffer: bytearray | memoryview, dtype: Any, shape: tuple[int, ...]) -> Any:
    import torch

    if not len(buffer):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).view(shape)


def send(pipe: Connection, message: object) -> None:
    """Writes a message; what is large in it not through copies, which would hold the interpreter.

    Raises:
        OSError: the other end is no more.
    """
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
        pipe.send_bytes(buffer.raw())  # flat: of a table only the rows would be counted


def receive(pipe: Connection) -> Any:
    """Reads a message, which must be of a process of our own.

    Raises:
        EOFError: the other end is no more.
    """
    read = io.BytesIO(pipe.recv_bytes())
    large = [bytearray(size) for size in pickle.load(read)]
    for buffer in large:
        pipe.recv_bytes_into(buffer)
    return pickle.load(read, buffers=large)


def sendable(error: BaseException) -> BaseException:
    """An error with where it was raised, if nobody meant to.

    One that cannot be sent goes as its text: of the nearest kind that a text makes if it was meant, else as a mistake of ours.
    """
    if isinstance(error, Exception) and not isinstance(error, IdeficsError):
        error.add_note(traceback.format_exc())
    if _can_be_sent(error):
        return error
    if not isinstance(error, IdeficsError):
        unmeant = RuntimeError(f"{type(error).__name__}: {error}")
        unmeant.__notes__ = list(getattr(error, "__notes__", ()))
        return unmeant
    for kind in type(error).__mro__[: type(error).__mro__.index(IdeficsError)]:
        try:
            plain: IdeficsError = kind(str(error))
        except TypeError:  # it is made of something else than a text
            continue
        if _can_be_sent(plain):
            return plain
    return IdeficsError(str(error))


def _can_be_sent(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its constructor raises when it is made again
        return False
    return True
