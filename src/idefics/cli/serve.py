"""`idefics serve`: one model over HTTP."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions
from idefics.cli.serve_options import AddressOptions, LoadOptions, SafetyOptions
from idefics.errors import OptionError

if TYPE_CHECKING:
    from idefics.engine.engine import Engine
    from idefics.engine.limits import Limits
    from idefics.server.model import ServedModel

__all__ = ["serve"]

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
_LEVELS = ("debug", "info", "warning", "error")


def serve(
    checkpoint: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Folder or Hub id; left out: the embedded model.", show_default=False)
    ] = None,
    *,
    model: ModelOptions,
    images: ImageOptions,
    address: AddressOptions,
    safety: SafetyOptions,
    load: LoadOptions,
    log_level: Annotated[str, Option("--log-level", help=f"{', '.join(_LEVELS[:-1])} or {_LEVELS[-1]}.")] = "info",
) -> None:
    """Serve a model over HTTP until stopped; Ctrl-C or SIGTERM lets running requests end.

    Example: idefics serve HuggingFaceM4/idefics2-8b --dtype bfloat16 --port 8080
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"serving needs {', '.join(missing)}: pip install 'idefics[server]'")
    model = model.naming(checkpoint)
    if log_level not in _LEVELS:
        raise OptionError(f"--log-level {log_level!r} is not one of {', '.join(_LEVELS)}")
    # Everything is refused that can be before a large model is loaded in vain.
    limits, at_once = load.of_server(safety), load.of_engine()
    keys, rule, tls = safety.keys(), safety.addresses(), address.tls()
    from idefics.server.run import bound, run

    with bound(address.host, address.port) as at, _ended_by_sigterm():
        from idefics.server.app import create_app
        from idefics.server.link.engine_process import EngineProcess
        from idefics.server.logs import configure, event

        engine = EngineProcess(partial(_loaded, model, images, at_once, log_level, load.speculate))
        configure(log_level)
        app = create_app(engine.model, engine, limits=limits, images=rule, api_keys=keys, cors=safety.cors or ())
        log = logging.getLogger(__name__)
        code = run(
            app,
            at,
            tls=tls,
            listening=lambda port: event(log, "listening", address=address.url(port), model=engine.model.name),
        )
    if code:
        raise SystemExit(code)


def _loaded(
    model: ModelOptions, images: ImageOptions, limits: Limits, log_level: str, speculate: int | None
) -> tuple[ServedModel, Engine]:
    """What the engine's process begins with."""
    loaded = open_model(model, images)
    from idefics.engine.engine import Engine
    from idefics.engine.limits import cache_blocks
    from idefics.linears.packing import finish_packing
    from idefics.server.logs import configure
    from idefics.server.model import ServedModel, spare_a_core

    configure(log_level)
    if limits.cache_bytes is not None:
        cache_blocks(loaded.model, limits)  # raises now rather than with the first request
    with memory_explained("packing the weights"):
        finish_packing(loaded.model)
    if model.threads is None:
        spare_a_core(loaded.model)
    return ServedModel.of(loaded, speculate=speculate), Engine(loaded.model, limits)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the process though it may be a container's first, which the kernel spares signals without a handler.

    At once: threads that download files would hold up an orderly end until they are done.
    """
    before = signal.signal(signal.SIGTERM, lambda kind, _: os._exit(128 + kind))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
