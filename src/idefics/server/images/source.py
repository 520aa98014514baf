"""Images of a request: from the URLs in it to bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx

from idefics.errors import ImageError
from idefics.server.errors import Overloaded
from idefics.server.images.addresses import AddressRule, CheckedNetwork
from idefics.server.images.downloads import download
from idefics.server.images.lookups import Lookups, RequestLookups
from idefics.server.images.references import is_data_url, shortened
from idefics.server.limits import ServerLimits

__all__ = ["ImageSource"]


class ImageSource:
    """Fetches images by URL.

    Args:
        limits: of bytes, time and redirects.
        rule: where images may be fetched from.
    """

    def __init__(self, limits: ServerLimits, rule: AddressRule) -> None:
        self._limits = limits
        self._rule = rule
        self._lookups = Lookups()
        self._ssl_context = httpx.create_ssl_context()
        self._held = 0

    @asynccontextmanager
    async def fetched(self, references: Sequence[str]) -> AsyncGenerator[Mapping[str, bytes], None]:
        """The encoded images behind the http(s) URLs among the references, which count as held until this is left.

        Raises:
            ImageError: a reference is neither a data URL nor can it be fetched; names it.
            Overloaded: all requests' images are too many bytes together.
        """
        urls = list(dict.fromkeys(reference for reference in references if not is_data_url(reference)))
        for url in urls:
            if not url[:8].lower().startswith(("http://", "https://")):
                raise ImageError(
                    f"{shortened(url)!r} is no image: give an http(s) URL or a data URL (data:image/png;base64,...)"
                )
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > self._limits.held_image_bytes:
                raise Overloaded("Model is overloaded")
            held += size
            self._held += size

        network = CheckedNetwork(self._rule, RequestLookups(self._lookups))
        try:
            yield await download(urls, self._limits, network=network, ssl_context=self._ssl_context, hold=hold)
        finally:
            self._held -= held

    async def close(self) -> None:
        """Lets go of its threads."""
        self._lookups.close()
