"""The images that one request has behind http(s) URLs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection

import httpcore

from idefics.errors import ImageError
from idefics.server.images.references import requested, shortened, target
from idefics.server.limits import ServerLimits

__all__ = ["download"]

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (("User-Agent", "idefics"), ("Accept", "image/*,*/*;q=0.5"), ("Accept-Encoding", "identity"))
_TOGETHER = 4  # connections of one request


async def download(
    urls: Collection[str],
    limits: ServerLimits,
    *,
    network: httpcore.AsyncNetworkBackend,
    ssl_context: ssl.SSLContext,
    hold: Callable[[int], None],
) -> dict[str, bytes]:
    """Fetches URLs, a few side by side over connections of their own: hosts that keep one request waiting keep no other.

    Args:
        urls: each once.
        limits: of bytes, time and redirects.
        network: makes the connections.
        ssl_context: for https.
        hold: told of bytes as they come, and raises where they are too many for all requests together.

    Raises:
        ImageError: one cannot be fetched, may not be, or is too large; names it.
        Overloaded: all requests' images are too many bytes together.
    """
    pool = httpcore.AsyncConnectionPool(
        ssl_context=ssl_context,
        max_connections=_TOGETHER,
        max_keepalive_connections=0,  # every image is checked where it is
        network_backend=network,
    )
    request = _Request(limits, pool, hold)
    tasks = [asyncio.ensure_future(request.image(url)) for url in urls]
    try:
        return dict(zip(urls, await asyncio.gather(*tasks), strict=True))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.aclose()


class _Request:
    def __init__(self, limits: ServerLimits, pool: httpcore.AsyncConnectionPool, hold: Callable[[int], None]) -> None:
        self._limits = limits
        self._pool = pool
        self._hold = hold
        self._left = limits.request_image_bytes
        self._places = asyncio.Semaphore(_TOGETHER)

    async def image(self, url: str) -> bytes:
        seconds = self._limits.image_seconds
        async with self._places:
            try:
                async with asyncio.timeout(seconds):
                    return await self._download(url)
            except TimeoutError:
                raise ImageError(f"{shortened(url)} could not be fetched within {seconds:g} s") from None
            except (
                httpcore.NetworkError,
                httpcore.ProtocolError,
                httpcore.TimeoutException,
                httpcore.UnsupportedProtocol,
            ) as error:
                told = " ".join(str(error).split()) or type(error).__name__
                raise ImageError(f"{shortened(url)} could not be fetched: {told}") from None

    async def _download(self, url: str) -> bytes:
        for _ in range(self._limits.redirects + 1):
            async with self._pool.stream("GET", requested(url), headers=_HEADERS) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in _REDIRECTS and b"location" in headers:
                    url = target(url, headers[b"location"].decode("latin-1"))
                    continue
                if response.status != 200:
                    raise ImageError(f"{shortened(url)} could not be fetched: HTTP {response.status}")
                return await self._body(response, url)
        raise ImageError(f"{shortened(url)}: more than {self._limits.redirects} redirects")

    async def _body(self, response: httpcore.Response, url: str) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_stream():
            self._hold(len(chunk))
            self._left -= len(chunk)
            data += chunk
            if len(data) > self._limits.image_bytes:
                raise ImageError(f"{shortened(url)} is over the limit of {self._limits.image_bytes} bytes for an image")
            if self._left < 0:
                raise ImageError(
                    f"the images of this request are over the limit of {self._limits.request_image_bytes} bytes together; "
                    "give fewer or smaller ones"
                )
        return bytes(data)
