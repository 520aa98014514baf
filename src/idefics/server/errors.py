"""What can go wrong between a client and the engine, and with which status each API tells it.

::

    ServerError           status  error_type; itself 500, internal: what nobody meant to happen
    ├── TooDeep              400  validation
    ├── Invalid              422  validation
    ├── TooLarge             413  validation
    ├── Unauthorized         401  unauthorized
    ├── Overloaded           429  overloaded
    ├── Closing              503  unavailable
    ├── TimedOut             504  timeout
    ├── ClientGone           499  cancelled
    └── GenerationFailed     424  generation
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from idefics.errors import IdeficsError, InputError

__all__ = [
    "ClientGone", "Closing", "GenerationFailed", "Invalid", "Overloaded", "ServerError", "TimedOut", "TooDeep", "TooLarge",
    "Unauthorized", "as_server_error", "as_told_error",
]  # fmt: skip


class ServerError(IdeficsError):
    """An error with an HTTP status.

    Args:
        message: for the client; carries the value, the limit and the remedy.
        param: the option at fault, if there is one.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TooDeep(ServerError):
    """A body whose lists and objects stand so deep within each other that nobody means it."""

    status = 400
    kind = "validation"


class Invalid(ServerError):
    """A request that cannot be answered as it is."""

    status = 422
    kind = "validation"


class TooLarge(ServerError):
    """A body over the limit."""

    status = 413
    kind = "validation"


class Unauthorized(ServerError):
    """No key, or a wrong one."""

    status = 401
    kind = "unauthorized"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class Overloaded(ServerError):
    """As many requests as the server takes on are in it."""

    status = 429
    kind = "overloaded"
    headers = MappingProxyType({"Retry-After": "1"})


class Closing(ServerError):
    """The server is stopping, or its engine is stuck or dead."""

    status = 503
    kind = "unavailable"
    headers = MappingProxyType({"Retry-After": "10"})


class TimedOut(ServerError):
    """The request's time is over."""

    status = 504
    kind = "timeout"


class ClientGone(ServerError):
    """Nobody reads the answer any more; only logs and metrics see this."""

    status = 499
    kind = "cancelled"


class GenerationFailed(ServerError):
    """The engine could not compute the answer."""

    status = 424
    kind = "generation"


def as_told_error(error: BaseException) -> ServerError:
    """As `as_server_error`, but for what went wrong outside of the engine: what nobody meant to raise is internal."""
    if isinstance(error, IdeficsError):
        return as_server_error(error)
    return ServerError(f"{type(error).__name__}; the server's log tells more")


def as_server_error(error: BaseException) -> ServerError:
    """The same error with a status: what a user handed over wrongly is told as it is, all else is the generation's."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, InputError):
        return Invalid(str(error))
    if isinstance(error, IdeficsError):
        return GenerationFailed(str(error))
    return GenerationFailed(f"{type(error).__name__}; the server's log tells more")
