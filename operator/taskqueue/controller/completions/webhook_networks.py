"""Which addresses webhooks may be sent to: an installer's decision. Pure.

A TaskQueue's author chooses the URL, and the operator sends the request: from where it runs, which
may be a place that the author cannot reach. So what counts is the address that a socket is about to
connect to, however the URL spells it and whatever DNS said before: `WebhookNetworks.allow`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PUBLIC = "public"
NONE = "none"

#: Global unicast: all other addresses of IPv6 have a special meaning, or none.
_UNICAST = ipaddress.IPv6Network("2000::/3")
#: Prefixes of IPv6 with an address of IPv4 in them, and at which bit that ends: whoever routes them
#: sends to the latter.
_EMBEDDING = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)
#: Public by their number, but of the host or cloud that the operator runs in.
_OF_CLOUDS = (ipaddress.IPv4Network("168.63.129.16/32"),)


@dataclass(frozen=True, slots=True)
class WebhookNetworks:
    """The networks that webhooks may be sent to.

    Attributes:
        public: all addresses of the public Internet are.
        networks: these are, too, public or not.
    """

    public: bool = True
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> WebhookNetworks:
        """Read ``public``, ``none`` and networks such as 10.1.0.0/16, separated by commas.

        Args:
            text: "" means ``public``.

        Raises:
            ValueError: one of them is none of these.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        if words == [NONE]:
            return cls(public=False)
        networks = tuple(_network(word) for word in words if word != PUBLIC)
        return cls(public=not words or PUBLIC in words, networks=networks)

    def allow(self, host: str) -> bool:
        """Return whether a socket may connect to an address, as a socket address has it."""
        try:
            address: Address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        found = embedded(address)
        return _is_in(found, self.networks) or (self.public and is_public(found))


def embedded(address: Address) -> Address:
    """Return the address of IPv4 in one of IPv6, if it has one; else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        for prefix, bits in _EMBEDDING:
            if address in prefix:
                return ipaddress.IPv4Address(int(address) >> bits & 0xFFFF_FFFF)
    return address


def is_public(address: Address) -> bool:
    """Return whether an address is of a host of the public Internet; none is embedded in it."""
    if isinstance(address, ipaddress.IPv6Address):
        return address in _UNICAST and address.is_global
    ordinary = not (address.is_multicast or address.is_reserved)
    return ordinary and address.is_global and not _is_in(address, _OF_CLOUDS)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _network(word: str) -> Network:
    try:
        return ipaddress.ip_network(word)
    except ValueError as error:
        raise ValueError(
            f"{word!r} is neither {PUBLIC}, nor {NONE} alone, nor a network such as 10.1.0.0/16 "
            f"({error})"
        ) from None
