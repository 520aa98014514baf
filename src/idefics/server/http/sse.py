"""Server-sent events, and answers that nobody waits for any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from idefics.server.errors import ClientGone, ServerError, TimedOut

__all__ = ["STREAMED", "EventStream", "Json", "guarded_events", "while_connected"]

Result = TypeVar("Result")

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""What the OpenAPI document says of routes that may answer with events."""


class Json(Response):
    """A JSON response of plain data; what cannot be written in UTF-8 is replaced."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The data as bytes."""
        return _dumps(content).encode("utf-8", "replace")


def _event(data: Any) -> bytes:
    """One event; a text is sent as it is."""
    text = data if isinstance(data, str) else _dumps(data)
    return f"data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """Sends events as they come. Ends them when the client is gone or leaves one unread for too long.

    Args:
        events: closed when the response ends, in whatever way.
        send_seconds: that the client may leave an event unread.
        stack: what the events stand on; closed after them, as events that never began close nothing.
        headers: of the response.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        send_seconds: float,
        stack: AsyncExitStack | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._stack = stack or AsyncExitStack()
        self._send_seconds = send_seconds
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until one of the two sides ends it."""
        del scope
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _stopped(sending, gone)
            await self._events.aclose()
            with suppress(ClientGone):
                async with self._stack:
                    raise ClientGone("the client is gone")

    async def _send(self, send: Send) -> None:
        async def within(message: dict[str, Any]) -> None:
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        try:
            await within({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self._events:
                await within({"type": "http.response.body", "body": event, "more_body": True})
            await within({"type": "http.response.body", "body": b"", "more_body": False})
        except (OSError, TimeoutError):
            return  # nobody reads: whoever made the events learns of it when they are closed


async def while_connected(request: Request, work: Coroutine[Any, Any, Result], *, deadline: float) -> Result:
    """The result of `work`, which is cancelled when the client leaves or the time is over.

    Args:
        request: whose body has been read.
        work: what to do.
        deadline: seconds from now.

    Raises:
        ClientGone: the client left.
        TimedOut: the time is over.
    """
    working = asyncio.ensure_future(work)
    reason: ServerError | None = None
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        done, _ = await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=deadline)
        if working in done:
            return working.result()
        reason = ClientGone("the client is gone") if gone in done else TimedOut(f"the request's time of {deadline:g} s is over")
        raise reason
    finally:
        await _stopped(working, gone, reason=reason)


def guarded_events(
    events: AsyncGenerator[Any, None], told: Callable[[ServerError], Any], failed: Callable[[BaseException], ServerError]
) -> AsyncGenerator[bytes, None]:
    """Events as bytes; an error becomes the last one."""

    async def run() -> AsyncGenerator[bytes, None]:
        try:
            async for event in events:
                yield _event(event)
        except Exception as error:  # the response has begun: whatever it is, it is the last event
            yield _event(told(failed(error)))
        finally:
            await events.aclose()

    return run()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stopped(*tasks: asyncio.Future[Any], reason: ServerError | None = None) -> None:
    for task in tasks:
        task.cancel(reason)  # whoever is cancelled may tell why
    await asyncio.gather(*tasks, return_exceptions=True)


def _dumps(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
