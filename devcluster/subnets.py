"""The addresses of native clusters: each has one /24 out of 10.89.0.0/16.

Its nodes have a /30 of that each. The control plane's links it to the host, a worker's links it to
the control plane, which routes between the host and the workers. The outer end has the first
address, the node the second. Which networks are free follows from what is in use on this machine
(other clusters' records, addresses and routes), not from a counter, so a crash cannot leak one.
"""

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass

from devcluster.commands import DevclusterError, run

#: One cluster per third octet: 10.89.0.0/24, 10.89.1.0/24, ...
_NETWORKS = tuple(ipaddress.IPv4Network(f"10.89.{n}.0/24") for n in range(256))

#: The pods of all nodes; those of node k have 10.244.k.0/24. All clusters use the same, because no
#: route leads from one to another.
POD_NETWORK = "10.244.0.0/16"

#: The service network, the API server's address in it, and the cluster DNS.
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"

#: As many links as a cluster's network has room for, but the control plane's.
MAX_WORKERS = 63


@dataclass(frozen=True)
class Link:
    """The point-to-point link of one node: to the host, or to the control plane.

    Attributes:
        number: of the cluster.
        node: 0 for the control plane, from 1 on for the workers.
    """

    number: int
    node: int = 0

    @property
    def cluster_network(self) -> str:
        """The network of all nodes of the cluster."""
        return str(_NETWORKS[self.number])

    @property
    def gateway(self) -> str:
        """The outer end: the host's for the control plane, the control plane's for a worker."""
        return self._address(1)

    @property
    def node_address(self) -> str:
        """The node's end: its InternalIP, where NodePorts and the control plane's API are."""
        return self._address(2)

    @property
    def prefix_length(self) -> int:
        """The link's prefix length."""
        return 30

    @property
    def interface(self) -> str:
        """The name of the interface at the outer end."""
        return f"tqdev{self.number}-{self.node}" if self.node else f"tqdev{self.number}"

    @property
    def pod_network(self) -> ipaddress.IPv4Network:
        """The addresses of the node's pods."""
        return ipaddress.IPv4Network(f"10.244.{self.node}.0/24")

    def _address(self, offset: int) -> str:
        return str(_NETWORKS[self.number][4 * self.node + offset])


def allocate(taken: Iterable[int], used: Iterable[str]) -> int:
    """Choose the lowest number of a cluster whose network is free.

    Args:
        taken: numbers that clusters of this machine have.
        used: addresses and networks of this machine, such as ``10.89.0.1/30``.

    Raises:
        DevclusterError: all 256 are in use.
    """
    numbers = set(taken)
    networks = [ipaddress.ip_network(text, strict=False) for text in used]
    for number, candidate in enumerate(_NETWORKS):
        if number not in numbers and not any(
            network.version == 4 and network.overlaps(candidate) for network in networks
        ):
            return number
    raise DevclusterError(
        "No free subnet in 10.89.0.0/16 for a cluster's nodes.\n"
        "What to do: `devcluster/bin/kind get clusters`, and delete those you do not need."
    )


def used_on_this_machine() -> list[str]:
    """Return the IPv4 networks that this machine has addresses in or routes to."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    return [route["dst"] for route in routes if route["dst"] not in ("default", "0.0.0.0/0")]
