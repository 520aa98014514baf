"""References to images as clients write them: http(s) URLs and data URLs."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from idefics.errors import ImageError

__all__ = ["is_data_url", "requested", "shortened", "target"]

_LONGEST = 8_192
"""Characters of an http(s) URL, which are gone through one by one."""


def is_data_url(reference: str) -> bool:
    """Whether it begins like one."""
    return reference[:5].lower() == "data:"


def shortened(reference: str) -> str:
    """A reference as messages and logs show it: without the bytes of a data URL or what would break a line."""
    plain = "".join(c if c.isprintable() else "?" for c in reference[:120])
    if is_data_url(plain):
        return f"{plain.partition(',')[0][:60]},..."
    return plain if len(reference) <= 120 else f"{plain}..."


def requested(url: str) -> str:
    """The URL without what is no part of a request: a name and password, a fragment.

    Raises:
        ImageError: no http(s) URL with a host, or a longer one than is read.
    """
    if len(url) > _LONGEST:
        raise ImageError(f"{shortened(url)} has {len(url)} characters, over the limit of {_LONGEST} for a URL")
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


def target(url: str, location: str) -> str:
    """Where a redirect from `url` leads.

    Raises:
        ImageError: nowhere.
    """
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ImageError(f"{shortened(url)} redirects to {shortened(location)!r}, which is no URL: {error}") from None
