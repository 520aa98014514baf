"""The application: both APIs over one engine, guarded, measured, and stopped in good order."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from idefics import __version__
from idefics.errors import IdeficsError
from idefics.server.errors import Invalid, NotAllowed, NotFound, ServerError
from idefics.server.http.guard import OPEN_PATHS, Guard
from idefics.server.http.keys import checked_keys
from idefics.server.http.sse import Json
from idefics.server.images.addresses import AddressRule
from idefics.server.images.decoders import Decoders
from idefics.server.limits import ServerLimits
from idefics.server.link.bridge import EngineLink
from idefics.server.model import ServedModel
from idefics.server.openai.routes import openai_error, openai_router
from idefics.server.playground import page_paths, playground_router
from idefics.server.service import Service, served_error
from idefics.server.tgi.routes import tgi_error, tgi_router
from idefics.server.tgi.schemas import TgiError

__all__ = ["create_app"]

log = logging.getLogger(__name__)
_BAD_REQUEST = {422: 400}  # what the clients of OpenAI's API are used to


def create_app(
    model: ServedModel,
    engine: EngineLink,
    *,
    limits: ServerLimits | None = None,
    images: AddressRule | None = None,
    api_keys: Iterable[str] = (),
    cors: Iterable[str] = (),
    decoders: Decoders | None = None,
) -> FastAPI:
    """An ASGI application that serves one model.

    Args:
        model: facts, see `ServedModel.of`.
        engine: `EngineProcess`, or `EngineThread` over a `Engine`; used by the application alone.
        limits: of requests.
        images: where images may be fetched from; None: public addresses.
        api_keys: one of which requests must bear; none means that anybody may ask.
        cors: origins of pages whose scripts may ask; none by default.
        decoders: processes in which images are decoded, if several applications share them; closed by whoever made them.

    Raises:
        OptionError: no client could send one of the keys, or any would.
    """
    limits, keys = limits or ServerLimits(), checked_keys(api_keys)
    service = Service(model, engine, limits, images or AddressRule(), decoders)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        del app
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="idefics",
        version=__version__,
        description=f"{model.name}: the text-generation-inference API and OpenAI's.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(tgi_router(service))
    app.include_router(openai_router(service))
    app.include_router(playground_router(service))

    unhealthy: dict[int | str, dict[str, Any]] = {
        503: {"model": TgiError, "description": "The engine or what prepares requests is stuck or dead"}
    }

    @app.get(
        "/health",
        tags=["operation"],
        summary="Whether the server gets on with its work",
        response_class=Response,
        responses=unhealthy,
    )
    @app.get("/ping", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def health() -> Response:
        if service.healthy:
            return Response()
        return Json({"error": "unhealthy", "error_type": "healthcheck"}, status_code=503)

    @app.get("/metrics", tags=["operation"], summary="Counts for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _handle_errors(app)
    app.add_middleware(
        Guard,
        limits=limits,
        api_keys=keys,
        error=error_response,
        open_paths=OPEN_PATHS | page_paths(),
        counted=lambda status: service.metrics.count("idefics_http_responses", str(status)),
    )
    origins = list(cors)
    if origins:  # outside of the guard: a browser asks what is allowed before it sends a key
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return app


def error_response(path: str, error: ServerError) -> Response:
    """An error in the form of the API that was asked."""
    if path.startswith("/v1/"):
        told, status = openai_error(error), _BAD_REQUEST.get(error.status, error.status)
    else:
        told, status = tgi_error(error), error.status
    return Json(told, status_code=status, headers=dict(error.headers))


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.url.path, _malformed(error))

    @app.exception_handler(IdeficsError)
    async def refused(request: Request, error: IdeficsError) -> Response:
        return error_response(request.url.path, served_error(error))

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> Response:
        kind = {404: NotFound, 405: NotAllowed}.get(error.status_code, Invalid)
        response = error_response(request.url.path, kind(str(error.detail)))
        response.headers.update(error.headers or {})
        return response


def _malformed(error: RequestValidationError) -> Invalid:
    """The first thing that is wrong with a body, in one line."""
    found = error.errors()[0]
    steps = [str(step) for step in found["loc"] if step not in ("body", "parameters")]
    # Where several types are possible, the one that was tried is a step too; no parameter is called so.
    name = ".".join(step for step in steps if step != "str" and "[" not in step)[:100]
    if found["type"] == "extra_forbidden":
        return Invalid(f"`{name}` is not a parameter of this API; leave it out", param=name)
    return Invalid(f"`{name or 'body'}`: {found['msg']}", param=name or None)
