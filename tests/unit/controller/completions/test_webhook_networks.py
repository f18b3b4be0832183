"""Where webhooks may be sent: ways to name an address that must not be reached are generated."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.completions.webhook_networks import WebhookNetworks

PUBLIC = WebhookNetworks()
#: Networks of IPv4 without a host of the public Internet.
NOT_PUBLIC = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
NOT_PUBLIC_V6 = ("::/128", "::1/128", "fc00::/7", "fe80::/10", "ff00::/8", "::/96", "2001:db8::/32")


def within(*networks: str) -> st.SearchStrategy[str]:
    return st.sampled_from(networks).flatmap(lambda one: st.ip_addresses(network=one)).map(str)


def spellings_v4(address: str) -> list[str]:
    """Return the ways in which a URL may name an address of IPv4, besides a name."""
    number = int(ipaddress.IPv4Address(address))
    parts = [int(part) for part in address.split(".")]
    return [
        address,
        str(number),
        hex(number),
        f"0{number:o}",
        ".".join(f"0{part:o}" for part in parts),
        ".".join(map(hex, parts)),
        f"{parts[0]}.{number & 0xFFFFFF}",
        f"{parts[0]}.{parts[1]}.{number & 0xFFFF}",
    ]


def wrapped(address: str) -> list[str]:
    """Return the addresses of IPv6 that lead to one of IPv4."""
    number = int(ipaddress.IPv4Address(address))
    return [
        str(ipaddress.IPv6Address(number | 0xFFFF << 32)),
        str(ipaddress.IPv6Address(number | 0x64FF9B << 96)),
        str(ipaddress.IPv6Address(number << 80 | 0x2002 << 112 | 1)),
        str(ipaddress.IPv6Address(number)),
    ]


@given(within(*NOT_PUBLIC))
def test_no_spelling_of_an_address_that_is_not_public_is_allowed(address: str) -> None:
    for spelling in spellings_v4(address):
        # What the system makes of it is what a socket would connect to.
        for *_, found in socket.getaddrinfo(spelling, 80, type=socket.SOCK_STREAM):
            assert not PUBLIC.allow(str(found[0])), spelling
    for spelling in wrapped(address):
        assert not PUBLIC.allow(spelling), spelling


@given(within(*NOT_PUBLIC_V6))
def test_no_special_address_of_ipv6_is_allowed(address: str) -> None:
    assert not PUBLIC.allow(address)
    assert not PUBLIC.allow(f"{address}%eth0")


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_hosts_of_the_internet_are_allowed(address: str) -> None:
    assert PUBLIC.allow(address)
    assert not WebhookNetworks.parse("none").allow(address)
    assert not WebhookNetworks.parse("10.0.0.0/8").allow(address)


@given(st.text())
def test_what_is_no_address_is_not_allowed(text: str) -> None:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        assert not PUBLIC.allow(text)


@given(within("10.1.0.0/16"))
def test_a_network_is_allowed_however_its_address_is_wrapped(address: str) -> None:
    networks = WebhookNetworks.parse("public, 10.1.0.0/16")
    assert networks.allow(address)
    assert all(networks.allow(one) for one in wrapped(address)[:3])
    assert networks.allow("1.1.1.1")
    assert not networks.allow("10.2.0.1")
    assert not WebhookNetworks.parse("none").allow(address)


@given(within(*NOT_PUBLIC))
def test_all_of_ipv6_does_not_mean_ipv4(address: str) -> None:
    networks = WebhookNetworks.parse("::/0")
    assert not any(networks.allow(one) for one in wrapped(address)[:3])


@pytest.mark.parametrize("text", ["", " ", "public", "public,"])
def test_the_internet_is_allowed_unless_something_else_is_said(text: str) -> None:
    assert WebhookNetworks.parse(text) == PUBLIC


@pytest.mark.parametrize("text", ["private", "10.0.0.1/8", "none,public", "10.0.0.0/33", "*"])
def test_what_is_no_network_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is neither public, nor none alone, nor a network"):
        WebhookNetworks.parse(text)
