"""How requests are taken in: each has one place, from before its body is looked at until the engine is done with it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from idefics.server.deadlines import ROUTE_SAYS
from idefics.server.http.bodies import parsed
from idefics.server.http.sse import while_connected
from idefics.server.service import Place, Service

__all__ = ["is_brief", "place_of", "taking_route"]

# Bodies up to here are read in the event loop. Values take time, and commas count them; a picture in a data URL has one.
BRIEF_BYTES = 2**18
BRIEF_VALUES = 1_000


def taking_route(service: Service) -> type[APIRoute]:
    """A class of routes whose POST requests are admitted, bounded, and dropped when their client leaves or time is over."""

    class TakingRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            if "POST" not in (self.methods or ()):
                return handle

            async def take(request: Request) -> Response:
                read = _Read(request.scope, request.receive)
                data = await read.body()  # first: after it, all that can still come is that the client leaves

                async def answer() -> Response:
                    with service.admitted() as place:
                        read.state.place = place
                        read.state.brief = len(data) <= BRIEF_BYTES and data.count(b",") <= BRIEF_VALUES
                        if data:
                            read.content = parsed(data)
                        return await handle(read)

                return await while_connected(read, answer(), deadline=service.limits.deadline + ROUTE_SAYS)

            return take

    return TakingRoute


def place_of(request: Request) -> Place:
    """The place of a request that was taken in."""
    place = request.state.place
    assert isinstance(place, Place)
    return place


def is_brief(request: Request) -> bool:
    """Whether to read a request's body takes less time than to hand it over to a worker; pictures cost little there."""
    return bool(request.state.brief)


class _Read(Request):
    content: Any = None

    async def json(self) -> Any:
        """The body, parsed already."""
        return self.content
