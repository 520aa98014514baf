"""Which machines images may be fetched from.

A host name is resolved once per request, every address that it stands for is checked, and the connection goes to a checked
address: a name that means something else a moment later gains nothing. Each redirect makes a new connection, so it is
checked again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

import httpcore

from idefics.errors import ImageError, OptionError
from idefics.server.images.lookups import RequestLookups

__all__ = ["AddressRule", "CheckedNetwork", "is_public"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Beyond what `ipaddress` calls not global, which differs between Python versions: shared and reserved ranges, tunnels of IPv4
# that are not taken apart below (Teredo), and clouds' metadata services behind public-looking addresses.
_CLOSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "3ffe::/16", "3fff::/20",
    )
)  # fmt: skip
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out to machines of the public internet."""
_TRANSLATED = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
"""Whose last 32 bits are an IPv4 address, to which a translator on the way may lead: mapped, SIIT, NAT64."""


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet's machines, IPv4 addresses inside IPv6 ones included.

    >>> is_public("1.1.1.1"), is_public("::ffff:127.0.0.1"), is_public("64:ff9b::a9fe:a9fe")
    (True, False, False)
    """
    return _is_public(ipaddress.ip_address(address.partition("%")[0]))


def _is_public(found: Address) -> bool:
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.sixtofour
        if any(found in network for network in _TRANSLATED):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
        if found not in _UNICAST:
            return False
    closed = any(found in network for network in _CLOSED if network.version == found.version)
    return not closed and found.is_global and not found.is_multicast


class AddressRule:
    """Which addresses may be connected to.

    Args:
        private: any address.
        allowed: hosts that may lie anywhere: names (`cdn.local`; `.local` for all below it), addresses, networks.

    Raises:
        OptionError: an entry is empty.
    """

    def __init__(self, *, private: bool = False, allowed: Iterable[str] = ()) -> None:
        self.private = private
        self._names: set[str] = set()
        self._networks: list[Network] = []
        for entry in allowed:
            if not entry.strip(". "):
                raise OptionError(f"{entry!r} is no host, address or network to allow images from")
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._names.add(entry.lower().rstrip("."))

    def permits(self, host: str, address: str) -> bool:
        """Whether `host`, which stands for `address` now, may be connected to there."""
        if self.private or self._named(host.lower().rstrip(".")):
            return True
        found = ipaddress.ip_address(address.partition("%")[0])
        inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        forms = [found] if inner is None else [found, inner]
        if any(form in network for form in forms for network in self._networks if network.version == form.version):
            return True
        return _is_public(found)

    def _named(self, host: str) -> bool:
        labels = host.split(".")
        return host in self._names or any("." + ".".join(labels[i:]) in self._names for i in range(1, len(labels)))


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connections to permitted addresses only.

    Args:
        rule: what is permitted.
        lookups: what hosts stand for.
    """

    def __init__(self, rule: AddressRule, lookups: RequestLookups) -> None:
        self._rule = rule
        self._lookups = lookups
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolves, checks, and connects to the first address that answers.

        Raises:
            ImageError: an address that the host stands for is not permitted.
        """
        addresses = await self._lookups.addresses(host)
        for address in addresses:
            if not self._rule.permits(host, address):
                raise ImageError(
                    f"{host} is not a public address; images are fetched from public ones only "
                    "(--allow-private-images, or --allow-image-host for this one)"
                )
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refused: no image lives there.

        Raises:
            ImageError: always.
        """
        del timeout, socket_options
        raise ImageError(f"{path} is no address to fetch an image from")

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await self._network.sleep(seconds)
