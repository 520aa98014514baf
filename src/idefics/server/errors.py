"""What can go wrong between a client and the engine, and with which status each API tells it.

::

    ServerError           status  error_type; itself 500, internal: what nobody meant to happen
    ├── TooDeep              400  validation
    ├── Invalid              422  validation
    │   ├── TooLong
    │   └── NoRoom
    ├── NotFound             404  not_found
    ├── NotAllowed           405  method_not_allowed
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
    "ClientGone", "Closing", "GenerationFailed", "Invalid", "NoRoom", "NotAllowed", "NotFound", "Overloaded", "ServerError",
    "TimedOut", "TooDeep", "TooLarge", "TooLong", "Unauthorized", "as_server_error", "as_told_error",
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


class TooLong(Invalid):
    """A prompt that leaves no room for an answer.

    Args:
        limit: that tokens must be below.
        tokens: of the prompt; None where it was not read, as its `characters` are too many for any tokens.
        characters: of the prompt.
        prompt: the API's name for it.
    """

    def __init__(self, *, limit: int, tokens: int | None = None, characters: int = 0, prompt: str) -> None:
        given = f"; {characters} characters are more in any case" if tokens is None else f". Given: {tokens}"
        super().__init__(f"`{prompt}` must have less than {limit} tokens{given}", param=prompt)


class NoRoom(Invalid):
    """A prompt and an answer that do not fit together.

    Args:
        limit: of tokens of both.
        tokens: of the prompt.
        new: that the answer may have.
        prompt: the API's name for the prompt.
        answer: the API's name for `new`.
    """

    def __init__(self, *, limit: int, tokens: int, new: int, prompt: str, answer: str) -> None:
        given = f"{tokens} `{prompt}` tokens and {new} `{answer}`"
        super().__init__(f"`{prompt}` tokens + `{answer}` must be <= {limit}. Given: {given}", param=answer)


class NotFound(ServerError):
    """A path or a name that the server has not."""

    status = 404
    kind = "not_found"


class NotAllowed(ServerError):
    """A path that takes other methods."""

    status = 405
    kind = "method_not_allowed"


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
