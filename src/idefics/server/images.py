"""Images of a request: from the URLs in it to Pillow images, at a bounded price."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httpcore
import httpx
from PIL import Image

from idefics.errors import ImageError
from idefics.processor.fetch import load_image
from idefics.processor.quiet import quiet
from idefics.server.addresses import AddressRule, CheckedNetwork
from idefics.server.limits import ServerLimits

__all__ = ["ImageSource", "decode", "shortened"]

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (("User-Agent", "idefics"), ("Accept", "image/*,*/*;q=0.5"), ("Accept-Encoding", "identity"))
_TOGETHER = 8  # images of one request that are fetched side by side


class ImageSource:
    """Fetches images by URL.

    Args:
        limits: of bytes, time and redirects.
        rule: where images may be fetched from.
    """

    def __init__(self, limits: ServerLimits, rule: AddressRule) -> None:
        self._limits = limits
        self._network = CheckedNetwork(rule)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=64,
            max_keepalive_connections=0,  # every image is checked where it is
            network_backend=self._network,
        )

    async def fetch(self, references: Sequence[str]) -> list[bytes]:
        """The encoded images behind http(s) and data URLs.

        Raises:
            ImageError: one cannot be fetched, may not be, or is too large; names it.
        """
        if len(references) > self._limits.images:
            raise ImageError(f"{len(references)} images in one request are over the limit of {self._limits.images}")
        together = asyncio.Semaphore(_TOGETHER)

        async def one(reference: str) -> bytes:
            async with together:
                return await self._one(reference)

        tasks = [asyncio.ensure_future(one(reference)) for reference in references]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Closes all connections."""
        await self._pool.aclose()
        self._network.close()

    async def _one(self, reference: str) -> bytes:
        kind = reference[:8].lower()
        if kind.startswith("data:"):
            return _data(reference, self._limits.image_bytes)
        if not kind.startswith(("http://", "https://")):
            raise ImageError(
                f"{shortened(reference)!r} is no image: give an http(s) URL or a data URL (data:image/png;base64,...)"
            )
        try:
            async with asyncio.timeout(self._limits.image_seconds):
                return await self._download(reference)
        except TimeoutError:
            raise ImageError(f"{shortened(reference)} could not be fetched within {self._limits.image_seconds:g} s") from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ) as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{shortened(reference)} could not be fetched: {told}") from None

    async def _download(self, url: str) -> bytes:
        for _ in range(self._limits.redirects + 1):
            target = _parsed(url)
            async with self._pool.stream("GET", target, headers=_HEADERS) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in _REDIRECTS and b"location" in headers:
                    url = urljoin(url, headers[b"location"].decode("latin-1"))
                    continue
                if response.status != 200:
                    raise ImageError(f"{shortened(url)} could not be fetched: HTTP {response.status}")
                return await self._body(response, url)
        raise ImageError(f"{shortened(url)}: more than {self._limits.redirects} redirects")

    async def _body(self, response: httpcore.Response, url: str) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self._limits.image_bytes:
                raise ImageError(f"{shortened(url)} is over the limit of {self._limits.image_bytes} bytes for an image")
        return bytes(data)


def decode(encoded: Sequence[bytes], limits: ServerLimits) -> list[Image.Image]:
    """The images as the processor's own loading makes them, once their headers promise no more pixels than allowed.

    Raises:
        ImageError: bytes that are no image, or one of too many pixels; says which.
    """
    left = limits.request_pixels
    images = []
    for number, data in enumerate(encoded, 1):
        where = f"image {number} of {len(encoded)}"
        width, height = _size(data)
        if width * height > limits.image_pixels:
            raise ImageError(
                f"{where} has {width}x{height} pixels, over the limit of {limits.image_pixels}; make it smaller first"
            )
        left -= width * height
        if left < 0:
            raise ImageError(f"the images of this request have over {limits.request_pixels} pixels together; make them smaller")
        try:
            images.append(load_image(data))
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from None
    return images


def shortened(reference: str) -> str:
    """A reference as messages and logs show it: without the bytes of a data URL or what would break a line."""
    plain = "".join(c if c.isprintable() else "?" for c in reference[:120])
    if plain[:5].lower() == "data:":
        return f"{plain.partition(',')[0][:60]},..."
    return plain if len(reference) <= 120 else f"{plain}..."


def _size(data: bytes) -> tuple[int, int]:
    """Width and height that the header states; (0, 0) where there is none, which loading then refuses by name."""
    try:
        with quiet():
            return Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError:
        return 1 << 30, 1
    except Exception:
        return 0, 0


def _data(reference: str, limit: int) -> bytes:
    header, comma, payload = reference.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError(f"{shortened(reference)} is not a base64 data URL (data:image/png;base64,...)")
    if len(payload) > limit * 4 // 3 + 4:
        raise ImageError(f"{shortened(reference)} is over the limit of {limit} bytes for an image")
    try:
        plain = unquote_to_bytes(payload) if "%" in payload else payload.encode("ascii")
        return base64.b64decode(b"".join(plain.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{shortened(reference)} is not valid base64: {error}") from None


def _parsed(url: str) -> str:
    """The URL without what is no part of a request: a name and password, a fragment.

    Raises:
        ImageError: no http(s) URL with a host, or a control character in it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        ascii_host = "" if not host else host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:
        raise ImageError(f"{shortened(url)} is no URL: {error}") from None
    if parts.scheme.lower() not in ("http", "https") or not ascii_host:
        raise ImageError(f"{shortened(url)}: images are fetched from http and https URLs only")
    place = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    netloc = place if port is None else f"{place}:{port}"
    plain = parts._replace(scheme=parts.scheme.lower(), netloc=netloc, fragment="").geturl()
    return "".join(c if "!" <= c <= "~" else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "replace")) for c in plain)
