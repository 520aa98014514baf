"""`idefics serve`: one model over HTTP."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions
from idefics.errors import OptionError

if TYPE_CHECKING:
    from idefics.engine.limits import Limits
    from idefics.server.model import ServedEngine, ServedModel

__all__ = ["serve"]

_ADDRESS, _SAFETY, _LOAD = "Address", "Safety", "Load"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def serve(
    checkpoint: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Folder or Hub id; left out: the embedded model.", show_default=False)
    ] = None,
    *,
    model: ModelOptions,
    images: ImageOptions,
    host: Annotated[str, Option("--host", help="Where to listen; 0.0.0.0 for all.", rich_help_panel=_ADDRESS)] = "127.0.0.1",
    port: Annotated[int, Option("--port", "-p", help="0 takes a free one.", rich_help_panel=_ADDRESS, min=0, max=65535)] = 8080,
    tls_cert: Annotated[
        Path | None, Option("--tls-cert", help="Certificate (PEM) for https.", rich_help_panel=_ADDRESS, show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, Option("--tls-key", help="Its private key (PEM).", rich_help_panel=_ADDRESS, show_default=False)
    ] = None,
    api_key: Annotated[
        list[str] | None,
        Option(
            "--api-key",
            help="Ask clients for this key; repeatable. Left out: IDEFICS_API_KEY, which others do not see.",
            rich_help_panel=_SAFETY,
            show_default=False,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        Option(
            "--cors", help="Origin whose pages may ask; repeatable, * for all.", rich_help_panel=_SAFETY, show_default=False
        ),
    ] = None,
    allow_private_images: Annotated[
        bool, Option("--allow-private-images", help="Fetch images from any address.", rich_help_panel=_SAFETY)
    ] = False,
    allow_image_host: Annotated[
        list[str] | None,
        Option(
            "--allow-image-host",
            help="Host, .domain, address or network to fetch images from though it is not public; repeatable.",
            rich_help_panel=_SAFETY,
            show_default=False,
        ),
    ] = None,
    max_images: Annotated[int, Option("--max-images", help="In one request.", rich_help_panel=_SAFETY, min=0)] = 64,
    max_image_mb: Annotated[float, Option("--max-image-mb", help="Of one encoded image.", rich_help_panel=_SAFETY)] = 20.0,
    max_body_mb: Annotated[float, Option("--max-body-mb", help="Of a request.", rich_help_panel=_SAFETY)] = 32.0,
    max_requests: Annotated[
        int, Option("--max-requests", help="Taken on together; more are told to come back.", rich_help_panel=_LOAD, min=1)
    ] = 128,
    max_rows: Annotated[int, Option("--max-rows", help="Answers computed together.", rich_help_panel=_LOAD, min=1)] = 64,
    max_pass_tokens: Annotated[
        int, Option("--max-pass-tokens", help="Computed in one pass at most.", rich_help_panel=_LOAD, min=1)
    ] = 2048,
    cache_gb: Annotated[
        float | None,
        Option(
            "--cache-gb", help="For keys and values; left out: what is free.", rich_help_panel=_LOAD, show_default=False
        ),
    ] = None,
    image_cache_mb: Annotated[float, Option("--image-cache-mb", help="For images.", rich_help_panel=_LOAD, min=0)] = 512.0,
    speculate: Annotated[
        int | None,
        Option(
            "--speculate",
            help="Guess this many tokens from each text so far; the same answers, sooner where they repeat. 0: off.",
            rich_help_panel=_LOAD, show_default=False, min=0,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        Option(
            "--workers", help="Threads that prepare images; left out: one per core, up to 8.", rich_help_panel=_LOAD,
            show_default=False, min=1,
        ),
    ] = None,
    deadline: Annotated[float, Option("--deadline", help="Seconds that a request may take.", rich_help_panel=_LOAD)] = 600.0,
    stuck_after: Annotated[
        float, Option("--stuck-after", help="Seconds of one step after which /health fails.", rich_help_panel=_LOAD)
    ] = 120.0,
    drain: Annotated[
        float, Option("--drain", help="Seconds that running requests get when the server is stopped.", rich_help_panel=_LOAD)
    ] = 60.0,
    log_level: Annotated[str, Option("--log-level", help="debug, info, warning or error.")] = "info",
) -> None:  # fmt: skip
    """Serve a model over HTTP until stopped; Ctrl-C or SIGTERM lets running requests end.

    Example: idefics serve HuggingFaceM4/idefics2-8b --dtype bfloat16 --port 8080
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"serving needs {', '.join(missing)}: pip install 'idefics[server]'")
    if checkpoint is not None:
        if model.model is not None:
            raise OptionError(f"MODEL {checkpoint!r} and --model {model.model!r} are both given; give one")
        model = dataclasses.replace(model, model=checkpoint)
    if (tls_cert is None) != (tls_key is None):
        raise OptionError("--tls-cert and --tls-key go together; give both or none")
    if log_level not in ("debug", "info", "warning", "error"):
        raise OptionError(f"--log-level {log_level!r} is not one of debug, info, warning, error")
    from idefics.engine.limits import Limits
    from idefics.machine.cpus import usable_cpus
    from idefics.server.http.keys import checked_keys
    from idefics.server.images.addresses import AddressRule
    from idefics.server.limits import ServerLimits

    # One key, whatever is in it: typer would cut the variable at blanks.
    of_environment = os.environ.get("IDEFICS_API_KEY")
    keys = checked_keys(api_key or ([of_environment] if of_environment else []))
    limits = ServerLimits(
        requests=max_requests, body_bytes=_bytes("--max-body-mb", max_body_mb * 2**20), images=max_images,
        image_bytes=_bytes("--max-image-mb", max_image_mb * 2**20),
        deadline=deadline, workers=workers or min(8, usable_cpus()), stuck_after=stuck_after, drain=drain,
    )  # fmt: skip
    at_once = Limits(
        rows=max_rows, tokens=max(max_pass_tokens, max_rows),
        image_bytes=_bytes("--image-cache-mb", image_cache_mb * 2**20),
        cache_bytes=None if cache_gb is None else _cache_bytes(cache_gb),
    )  # fmt: skip
    rule = AddressRule(private=allow_private_images, allowed=allow_image_host or ())
    from idefics.server.run import bound, run, tls_context

    # Before a large model is loaded in vain.
    tls = None if tls_cert is None or tls_key is None else tls_context(tls_cert, tls_key)
    with bound(host, port) as at, _ended_by_sigterm():
        from idefics.server.app import create_app
        from idefics.server.link.engine_process import EngineProcess
        from idefics.server.logs import configure, event

        engine = EngineProcess(partial(_loaded, model, images, at_once, log_level, speculate))
        configure(log_level)
        app = create_app(engine.model, engine, limits=limits, images=rule, api_keys=keys, cors=cors or ())
        address = f"{'http' if tls is None else 'https'}://{_host(host)}"
        log = logging.getLogger(__name__)
        code = run(
            app,
            at,
            tls=tls,
            listening=lambda at: event(log, "listening", address=f"{address}:{at}", model=engine.model.name),
        )
    if code:
        raise SystemExit(code)


def _loaded(
    model: ModelOptions, images: ImageOptions, limits: Limits, log_level: str, speculate: int | None
) -> tuple[ServedModel, ServedEngine]:
    """What the engine's process begins with."""
    loaded = open_model(model, images)
    from idefics.engine.limits import cache_blocks
    from idefics.linears.packing import finish_packing
    from idefics.server.logs import configure
    from idefics.server.model import ServedEngine, ServedModel, spare_a_core

    configure(log_level)
    if limits.cache_bytes is not None:
        cache_blocks(loaded.model, limits)  # raises now rather than with the first request
    with memory_explained("packing the weights"):
        finish_packing(loaded.model)
    if model.threads is None:
        spare_a_core(loaded.model)
    return ServedModel.of(loaded, speculate=speculate), ServedEngine(loaded.model, limits)


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


def _bytes(option: str, value: float) -> int:
    if not math.isfinite(value):
        raise OptionError(f"{option} {value} is no size; give a number")
    return int(value)


def _cache_bytes(gigabytes: float) -> int:
    found = _bytes("--cache-gb", gigabytes * 1e9)
    if found < 1:
        raise OptionError(f"--cache-gb {gigabytes:g} keeps no keys and values; leave it out to take what is free")
    return found


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
