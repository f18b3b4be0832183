"""Each cluster's link to the host: one /30 out of 10.89.0.0/16.

The host has the first address, the node the second. Which are free follows from what is in use
on this machine (other clusters' records, addresses and routes), not from a counter, so a
crash cannot leak one.
"""

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass

from devcluster.commands import DevclusterError, run

#: One cluster per third octet: 10.89.0.0/30, 10.89.1.0/30, ...
_LINKS = tuple(ipaddress.IPv4Network(f"10.89.{n}.0/30") for n in range(256))


@dataclass(frozen=True)
class Link:
    """The point-to-point link between the host and one node."""

    number: int

    @property
    def host_address(self) -> str:
        """The host's end."""
        return str(_LINKS[self.number][1])

    @property
    def node_address(self) -> str:
        """The node's end: its InternalIP, where the API server and NodePorts are."""
        return str(_LINKS[self.number][2])

    @property
    def prefix_length(self) -> int:
        """The network's prefix length."""
        return _LINKS[self.number].prefixlen

    @property
    def interface(self) -> str:
        """The name of the host's network interface."""
        return f"tqdev{self.number}"


def allocate(taken: Iterable[int], used: Iterable[str]) -> Link:
    """Choose the lowest free link.

    Args:
        taken: numbers of links that clusters of this machine have.
        used: addresses and networks of this machine, such as ``10.89.0.1/30``.

    Raises:
        DevclusterError: all 256 are in use.
    """
    numbers = set(taken)
    networks = [ipaddress.ip_network(text, strict=False) for text in used]
    for number, link in enumerate(_LINKS):
        if number not in numbers and not any(
            network.version == 4 and network.overlaps(link) for network in networks
        ):
            return Link(number)
    raise DevclusterError(
        "No free subnet in 10.89.0.0/16 for a cluster's link to this machine.\n"
        "What to do: `devcluster/bin/kind get clusters`, and delete those you do not need."
    )


def used_on_this_machine() -> list[str]:
    """Return the IPv4 networks that this machine has addresses in or routes to."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    return [route["dst"] for route in routes if route["dst"] not in ("default", "0.0.0.0/0")]
