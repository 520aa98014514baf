"""Options of `idefics serve`, by what they are about, and what the server makes of each group."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from idefics.errors import OptionError

if TYPE_CHECKING:
    import ssl

    from idefics.engine.limits import Limits
    from idefics.server.images.addresses import AddressRule
    from idefics.server.limits import ServerLimits

__all__ = ["AddressOptions", "LoadOptions", "SafetyOptions"]

_ADDRESS, _SAFETY, _LOAD = "Address", "Safety", "Load"


def _option(name: str, *names: str, help: str, panel: str, shown: bool = False, **more: Any) -> Any:
    return Option(name, *names, help=help, rich_help_panel=panel, show_default=shown, **more)


@dataclass(frozen=True, kw_only=True)
class AddressOptions:
    """Where the server listens."""

    host: Annotated[str, _option("--host", help="Where to listen; 0.0.0.0 for all.", panel=_ADDRESS, shown=True)] = "127.0.0.1"
    port: Annotated[int, _option("--port", "-p", help="0 takes a free one.", panel=_ADDRESS, shown=True, min=0, max=65535)] = (
        8080
    )
    tls_cert: Annotated[Path | None, _option("--tls-cert", help="Certificate (PEM) for https.", panel=_ADDRESS)] = None
    tls_key: Annotated[Path | None, _option("--tls-key", help="Its private key (PEM).", panel=_ADDRESS)] = None

    def tls(self) -> ssl.SSLContext | None:
        """What https needs; None for http.

        Raises:
            OptionError: one of the two files is missing or unusable.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise OptionError("--tls-cert and --tls-key go together; give both or none")
        if self.tls_cert is None or self.tls_key is None:
            return None
        from idefics.server.run import tls_context

        return tls_context(self.tls_cert, self.tls_key)

    def url(self, port: int) -> str:
        """The address that clients use, at the port that was found."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls_cert is None else 'https'}://{host}:{port}"


@dataclass(frozen=True, kw_only=True)
class SafetyOptions:
    """Who may ask, and for what."""

    api_key: Annotated[
        list[str] | None,
        _option(
            "--api-key",
            help="Ask clients for this key; repeatable. Left out: IDEFICS_API_KEY, which others do not see.",
            panel=_SAFETY,
        ),
    ] = None
    cors: Annotated[
        list[str] | None, _option("--cors", help="Origin whose pages may ask; repeatable, * for all.", panel=_SAFETY)
    ] = None
    allow_private_images: Annotated[
        bool, _option("--allow-private-images", help="Fetch images from any address.", panel=_SAFETY, shown=True)
    ] = False
    allow_image_host: Annotated[
        list[str] | None,
        _option(
            "--allow-image-host",
            help="Host, .domain, address or network to fetch images from though it is not public; repeatable.",
            panel=_SAFETY,
        ),
    ] = None
    max_images: Annotated[int, _option("--max-images", help="In one request.", panel=_SAFETY, shown=True, min=0)] = 64
    max_image_mb: Annotated[float, _option("--max-image-mb", help="Of one encoded image.", panel=_SAFETY, shown=True)] = 20.0
    max_body_mb: Annotated[float, _option("--max-body-mb", help="Of a request.", panel=_SAFETY, shown=True)] = 32.0

    def keys(self) -> list[str]:
        """Keys that clients may show; none where everybody may ask.

        Raises:
            OptionError: a key that no client could send.
        """
        from idefics.server.http.keys import checked_keys

        # One key, whatever is in it: typer would cut the variable at blanks.
        of_environment = os.environ.get("IDEFICS_API_KEY")
        return checked_keys(self.api_key or ([of_environment] if of_environment else []))

    def addresses(self) -> AddressRule:
        """Where images may be fetched from.

        Raises:
            OptionError: what is allowed is no host, address or network.
        """
        from idefics.server.images.addresses import AddressRule

        return AddressRule(private=self.allow_private_images, allowed=self.allow_image_host or ())


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How much is done at once, and for how long."""

    max_requests: Annotated[
        int, _option("--max-requests", help="Taken on together; more are told to come back.", panel=_LOAD, shown=True, min=1)
    ] = 128
    max_rows: Annotated[int, _option("--max-rows", help="Answers computed together.", panel=_LOAD, shown=True, min=1)] = 64
    max_pass_tokens: Annotated[
        int, _option("--max-pass-tokens", help="Computed in one pass at most.", panel=_LOAD, shown=True, min=1)
    ] = 2048
    cache_gb: Annotated[
        float | None, _option("--cache-gb", help="For keys and values; left out: what is free.", panel=_LOAD)
    ] = None
    image_cache_mb: Annotated[float, _option("--image-cache-mb", help="For images.", panel=_LOAD, shown=True, min=0)] = 512.0
    speculate: Annotated[
        int | None,
        _option(
            "--speculate",
            help="Guess this many tokens from each text so far; the same answers, sooner where they repeat. 0: off.",
            panel=_LOAD,
            min=0,
        ),
    ] = None
    workers: Annotated[
        int | None,
        _option("--workers", help="Processes that decode images; left out: one per core, up to 8.", panel=_LOAD, min=1),
    ] = None
    deadline: Annotated[float, _option("--deadline", help="Seconds that a request may take.", panel=_LOAD, shown=True)] = 600.0
    stuck_after: Annotated[
        float,
        _option("--stuck-after", help="Seconds of one step after which /health fails.", panel=_LOAD, shown=True),
    ] = 120.0
    drain: Annotated[
        float,
        _option("--drain", help="Seconds that running requests get when the server is stopped.", panel=_LOAD, shown=True),
    ] = 60.0

    def of_server(self, safety: SafetyOptions) -> ServerLimits:
        """What the server takes on.

        Raises:
            OptionError: a limit that is none.
        """
        from idefics.machine.cpus import usable_cpus
        from idefics.server.limits import ServerLimits

        return ServerLimits(
            requests=self.max_requests,
            body_bytes=_bytes("--max-body-mb", safety.max_body_mb * 2**20),
            images=safety.max_images,
            image_bytes=_bytes("--max-image-mb", safety.max_image_mb * 2**20),
            deadline=self.deadline,
            workers=self.workers or min(8, usable_cpus()),
            stuck_after=self.stuck_after,
            drain=self.drain,
        )

    def of_engine(self) -> Limits:
        """What the engine takes on.

        Raises:
            OptionError: a limit that is none.
        """
        from idefics.engine.limits import Limits

        return Limits(
            rows=self.max_rows,
            tokens=max(self.max_pass_tokens, self.max_rows),
            image_bytes=_bytes("--image-cache-mb", self.image_cache_mb * 2**20),
            cache_bytes=None if self.cache_gb is None else _cache_bytes(self.cache_gb),
        )


def _bytes(option: str, value: float) -> int:
    if not math.isfinite(value):
        raise OptionError(f"{option} {value} is no size; give a number")
    return int(value)


def _cache_bytes(gigabytes: float) -> int:
    found = _bytes("--cache-gb", gigabytes * 1e9)
    if found < 1:
        raise OptionError(f"--cache-gb {gigabytes:g} keeps no keys and values; leave it out to take what is free")
    return found
