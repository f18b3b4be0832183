"""Every connection of a running system is among those that the shipped NetworkPolicies allow.

They are read from the connection tracking of the nodes, which knows what a Service's address stood
for: the address and the port of the pod that was reached, as a network plugin sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from devcluster.paths import CHECKOUT
from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, Harness
from tests.faults.node_shell import NodeShell
from tests.unit.manifests.network_policies import Peer, allows

pytestmark = pytest.mark.cluster

POLICIES = CHECKOUT / "manifests" / "network-policies"


@dataclass(frozen=True)
class Connection:
    """A connection of a pod, as its own network namespace shows it."""

    opener: str
    target: str
    port: int


def policies(harness: Harness) -> list[Any]:
    places = {
        "operator": OPERATOR_NAMESPACE,
        "workers": harness.namespace,
        "broker": "rabbitmq",
    }
    found = []
    for role, namespace in places.items():
        policy = yaml.safe_load((POLICIES / role / "policy.yaml").read_text())
        policy["metadata"]["namespace"] = namespace
        found.append(policy)
    return found


def tracked(node: str) -> set[Connection]:
    """Return the TCP connections that a node forwards, each with the address that is reached."""
    shown = NodeShell(node).run("conntrack", "-L", "-p", "tcp", "--state", "ESTABLISHED")
    found = set()
    for line in shown.splitlines():
        ends = re.findall(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)", line)
        if len(ends) == 2:
            # The second is the answer: it comes from whom the first one has reached in the end.
            (opener, _, _, _), (target, _, port, _) = ends
            found.add(Connection(opener, target, int(port)))
    return found


def peers(harness: Harness) -> dict[str, Peer]:
    """Return the pods of the cluster by their addresses; those of a node's own address are none."""
    labels: Mapping[str, Body] = {
        one["metadata"]["name"]: one["metadata"].get("labels", {})
        for one in harness.api.get("/api/v1/namespaces")["items"]
    }
    found = {}
    for pod in harness.api.get("/api/v1/pods")["items"]:
        metadata, status = pod["metadata"], pod["status"]
        if status["phase"] == "Running" and not pod["spec"].get("hostNetwork"):
            found[status["podIP"]] = Peer(
                metadata["namespace"],
                metadata.get("labels", {}),
                labels[metadata["namespace"]],
                status["podIP"],
            )
    return found


@pytest.fixture(scope="module")
def connections(harness: Harness) -> set[Connection]:
    """Those of the whole cluster while Tasks run."""
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    assert harness.finished(harness.task("one"))["phase"] == "Succeeded"
    nodes = [node["metadata"]["name"] for node in harness.api.get("/api/v1/nodes")["items"]]
    found: set[Connection] = set()

    def includes_the_workers() -> bool:
        workers = {pod["status"].get("podIP") for pod in harness.pods()}
        found.clear()
        found.update(*(tracked(node) for node in nodes))
        return any(one.opener in workers and one.port == 5672 for one in found)

    harness.until(includes_the_workers, what="connections of workers", seconds=30)
    return found


def test_every_connection_is_allowed_by_the_shipped_policies(
    harness: Harness, connections: set[Connection]
) -> None:
    pods, shipped = peers(harness), policies(harness)
    seen = set()
    for one in connections:
        source = pods.get(one.opener, Peer(address=one.opener))
        target = pods.get(one.target, Peer(address=one.target))
        if not source.namespace:
            continue  # a node's own connections: probes, and clients outside the cluster
        if not {source.namespace, target.namespace} & {
            OPERATOR_NAMESPACE,
            harness.namespace,
            "rabbitmq",
        }:
            continue
        if target.namespace == "rabbitmq" and source.namespace not in (
            OPERATOR_NAMESPACE,
            harness.namespace,
        ):
            continue  # another test's
        assert allows(shipped, source, target, one.port), (source, target, one.port)
        seen.add((source.namespace, target.namespace, one.port))
    assert (OPERATOR_NAMESPACE, "rabbitmq", 5672) in seen, json.dumps(sorted(seen))
    assert (harness.namespace, "rabbitmq", 5672) in seen
    assert {port for name, other, port in seen if (name, other) == (OPERATOR_NAMESPACE, "")} <= {
        443,
        6443,
    }


def test_the_policies_can_be_applied(harness: Harness) -> None:
    for role in ("operator", "workers", "broker"):
        harness.kubectl.ok(
            "-n", harness.namespace, "apply", "--dry-run=server", "-k", str(POLICIES / role)
        )
