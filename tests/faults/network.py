"""Faults of the network between one pod and others: cuts, losses, a low rate.

They are made in the kernel of the pod's node, so neither side sees more than packets that do not
arrive. Every rule names the address of a pod of one namespace, the test's own: the traffic of
other pods is never touched. Each fault ends on exit, after ``seconds``, or with the test's process
(see `NodeShell.changed`).

The kernel has no netem: for delays put a `tests.faults.relay` between the two.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.faults.node_shell import NodeShell

if TYPE_CHECKING:
    from tests.conftest import Kubectl

#: Packets pass one of these: between pods, and between a pod and the node's own programs.
_HOOKS = ("FORWARD", "INPUT", "OUTPUT")

#: How many seconds of the rate may be sent at once, and how long packets may wait.
_BURST_S, _QUEUE_S = 0.02, 0.5
_LEAST_BURST_BYTES = 8 * 1024


class PacketCounts:
    """Counts the packets that a fault is about, dropped and passed, from its begin."""

    def __init__(self, shell: NodeShell, chain: str) -> None:
        self._shell = shell
        self._chain = chain

    def read(self) -> tuple[int, int]:
        """Return (dropped, passed) packets, of both directions together.

        Raises:
            RuntimeError: the fault has ended.
        """
        try:
            listed = self._shell.run("iptables", "-w", "-t", "mangle", "-nvxL", self._chain)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the fault has ended: {error.stderr}") from error
        counts = {"DROP": 0, "RETURN": 0}
        for line in listed.splitlines()[2:]:
            packets, _, target = line.split()[:3]
            counts[target] += int(packets)
        return counts["DROP"], counts["RETURN"]


class PodNetwork:
    """Disturbs the packets of pods of one namespace.

    Args:
        kubectl: of the cluster.
        namespace: the test's own.
    """

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace

    @contextmanager
    def cut(
        self, pod: str, *, peer: str | None = None, port: int | None = None, seconds: float = 60
    ) -> Iterator[PacketCounts]:
        """Drop all packets between a pod and a peer, in both directions.

        Args:
            pod: a pod's name.
            peer: an IPv4 address: of a pod, not of a Service; None: everybody.
            port: a TCP port of either side; None: all packets.
            seconds: after which the fault ends at the latest.
        """
        with self._dropping(pod, peer, port, "", seconds) as counts:
            yield counts

    @contextmanager
    def loss(
        self,
        pod: str,
        probability: float,
        *,
        peer: str | None = None,
        port: int | None = None,
        seconds: float = 60,
    ) -> Iterator[PacketCounts]:
        """Drop each packet with a probability (0 to 1); otherwise as `cut`."""
        chance = f"-m statistic --mode random --probability {probability:.6f}"
        with self._dropping(pod, peer, port, chance, seconds) as counts:
            yield counts

    @contextmanager
    def rate(self, pod: str, kilobits_per_second: int, *, seconds: float = 60) -> Iterator[None]:
        """Limit what a pod sends and what it receives to this rate each.

        Args:
            pod: a pod's name.
            kilobits_per_second: of each direction.
            seconds: after which the fault ends at the latest.
        """
        node, address = self._where(pod)
        shell = NodeShell(node)
        (route,) = json.loads(shell.run("ip", "-json", "route", "get", address))
        outside = route["dev"]
        inside = f"nsenter --net=/run/netns/{_namespace_behind(shell, outside)}"
        burst = max(_LEAST_BURST_BYTES, int(kilobits_per_second * 125 * _BURST_S))
        limit = f"tbf rate {kilobits_per_second}kbit burst {burst} latency {_QUEUE_S * 1000:.0f}ms"
        with shell.changed(
            [
                f"tc qdisc add dev {outside} root {limit}",
                f"{inside} tc qdisc add dev eth0 root {limit}",
            ],
            [f"tc qdisc del dev {outside} root", f"{inside} tc qdisc del dev eth0 root"],
            seconds=seconds,
        ):
            yield

    @contextmanager
    def _dropping(
        self, pod: str, peer: str | None, port: int | None, chance: str, seconds: float
    ) -> Iterator[PacketCounts]:
        node, address = self._where(pod)
        shell = NodeShell(node)
        chain = f"FAULT-{uuid.uuid4().hex[:10]}"
        other = str(ipaddress.IPv4Address(peer)) if peer else "0.0.0.0/0"
        ports = f"-p tcp -m multiport --ports {port:d}" if port else ""
        tables = "iptables -w 10 -t mangle"
        selected = [f"-s {address} -d {other} {ports}", f"-s {other} -d {address} {ports}"]
        with shell.changed(
            [
                f"{tables} -N {chain}",
                *(f"{tables} -A {chain} {packets} {chance} -j DROP" for packets in selected),
                *(f"{tables} -A {chain} {packets} -j RETURN" for packets in selected),
                *(f"{tables} -I {hook} -j {chain}" for hook in _HOOKS),
            ],
            [
                *(f"{tables} -D {hook} -j {chain}" for hook in _HOOKS),
                f"{tables} -F {chain}",
                f"{tables} -X {chain}",
            ],
            seconds=seconds,
        ):
            yield PacketCounts(shell, chain)

    def _where(self, pod: str) -> tuple[str, str]:
        """Return the node and the address of a pod of the namespace."""
        found: dict[str, Any] = json.loads(
            self._kubectl.ok("get", "pod", pod, "-n", self._namespace, "-o", "json")
        )
        if found["spec"].get("hostNetwork"):
            raise ValueError(f"{self._namespace}/{pod} shares its node's address with others")
        return found["spec"]["nodeName"], str(ipaddress.IPv4Address(found["status"]["podIP"]))


def _namespace_behind(shell: NodeShell, interface: str) -> str:
    """Return the name of the network namespace that has the other end of a veth pair."""
    (link,) = json.loads(shell.run("ip", "-json", "link", "show", interface))
    known = json.loads(shell.run("ip", "-json", "netns", "list-id"))
    return next(str(one["name"]) for one in known if one["nsid"] == link["link_netnsid"])
