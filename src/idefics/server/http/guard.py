"""What stands before the routes: request ids, keys, and bodies that are too large or too slow. Plain ASGI, so that a route
sees at once when its client is gone.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from idefics.server.errors import Closing, Overloaded, ServerError, TimedOut, TooLarge, Unauthorized
from idefics.server.http.keys import bears
from idefics.server.limits import ServerLimits
from idefics.server.logs import REQUEST_ID, event
from idefics.server.service import served_error

__all__ = ["OPEN_PATHS", "Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
ErrorResponse = Callable[[str, ServerError], Any]

OPEN_PATHS = frozenset({"/health", "/metrics", "/ping"})
"""Need no key: what a load balancer or Prometheus asks for."""

log = logging.getLogger(__name__)
_ID = re.compile(r"[\w.:-]{1,128}")


class Guard:
    """Wraps the application.

    Args:
        app: what answers.
        limits: of bodies.
        api_keys: one of which requests must bear; none means that anybody may ask.
        error: makes a response of a path and an error, in the form of that path's API.
        counted: told each response's status.
        open_paths: need no key, and are logged at level debug.
    """

    def __init__(
        self,
        app: Application,
        *,
        limits: ServerLimits,
        api_keys: Iterable[str],
        error: ErrorResponse,
        counted: Callable[[int], None],
        open_paths: Collection[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._limits = limits
        self._keys = list(api_keys)
        self._error = error
        self._counted = counted
        self._open_paths = open_paths
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        token = REQUEST_ID.set(request_id)
        began, status, path = time.monotonic(), 499, scope["path"]
        body = bytearray()
        begun = False

        async def send_marked(message: Message) -> None:
            nonlocal begun, status
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            try:
                self._check_key(scope, headers)
                await self._read(body, headers, receive)
            except ServerError as error:
                await self._error(path, error)(scope, receive, send_marked)
            except ConnectionError:
                pass  # gone before the body was whole
            else:
                await self._app(scope, self._replayed(body, receive), send_marked)
        except asyncio.CancelledError:  # the server stops and has waited long enough; it asks nothing more of us
            if begun:
                raise
            await self._error(path, Closing("the server is stopping"))(scope, receive, send_marked)
        except Exception as error:  # nobody meant to raise it: told as such, and logged
            if begun:
                raise
            await self._error(path, served_error(error))(scope, receive, send_marked)
        finally:
            self._let_go(body)
            self._counted(status)
            level = logging.DEBUG if self._is_open(scope) else logging.INFO
            seconds = round(time.monotonic() - began, 4)
            event(log, "request", level=level, method=scope["method"], path=path, status=status, seconds=seconds)
            REQUEST_ID.reset(token)

    def _is_open(self, scope: Scope) -> bool:
        """Whether a request needs no key; the health that `GET /` tells is anybody's, what `POST /` answers is not."""
        return scope["path"] in self._open_paths or (scope["path"], scope["method"]) == ("/", "GET")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or self._is_open(scope):
            return
        if not bears(headers.get("authorization", ""), self._keys):
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY")

    async def _read(self, body: bytearray, headers: Headers, receive: Receive) -> None:
        limit = self._limits.body_bytes
        told = TooLarge(f"the body is over the limit of {limit} bytes; send smaller images, or their URLs")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise told
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > limit:
                        raise told
                    if chunk and self._held > self._limits.held_bytes:  # who sends nothing holds nothing
                        raise Overloaded("Model is overloaded")
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            raise TimedOut(f"the body did not arrive within {self._limits.body_seconds:g} s") from None

    def _replayed(self, body: bytearray, receive: Receive) -> Receive:
        """Gives the body once and lets go of it; after it comes what the server has to say: that the client is gone."""
        given = False

        async def receive_again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
            self._let_go(body)
            return message

        return receive_again

    def _let_go(self, body: bytearray) -> None:
        self._held -= len(body)
        body.clear()
