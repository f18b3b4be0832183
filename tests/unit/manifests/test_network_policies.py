"""The shipped NetworkPolicies allow what must work, and nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests.network_policies import Peer, allows

FOLDER = Path(__file__).parents[3] / "manifests" / "network-policies"
OPERATOR_LABELS = {"app.kubernetes.io/name": "taskqueue-operator"}
WORKER_LABELS = {
    "app.kubernetes.io/managed-by": "taskqueue-operator",
    "taskqueue.dev/queue": "thumbnails",
}

#: Where each is applied: that of the operator in two installations.
NAMESPACES = {
    "operator": ["taskqueue-system", "taskqueue-team-a"],
    "workers": ["shop"],
    "broker": ["rabbitmq"],
}

PEERS = {
    "operator": Peer("taskqueue-system", OPERATOR_LABELS),
    "team's operator": Peer("taskqueue-team-a", OPERATOR_LABELS),
    "worker": Peer("shop", WORKER_LABELS),
    "broker": Peer("rabbitmq", {"app.kubernetes.io/name": "rabbitmq"}),
    "names": Peer("kube-system", {"k8s-app": "kube-dns"}),
    "API server": Peer(address="10.88.0.1"),
    "Prometheus": Peer("monitoring", {}, {"taskqueue.dev/scrapes-metrics": "true"}),
    "producer": Peer("web", {}, {"taskqueue.dev/uses-broker": "true"}),
    "database": Peer("databases", {"app": "postgresql"}, {"taskqueue.dev/has-store": "true"}),
    "another tenant": Peer("bakery", {"app": "oven"}),
    "neighbour": Peer("shop", {"app": "frontend"}),
    "internet": Peer(address="192.0.2.1"),
}

PORTS = (53, 80, 443, 5432, 5671, 5672, 6379, 6443, 8080, 8081, 15671, 15672, 15692, 25672)

#: Who must reach whom, where.
MUST_WORK = {
    *(
        (who, "broker", port)
        for who in ("operator", "team's operator")
        for port in (5671, 5672, 15671, 15672)
    ),
    *((who, "API server", port) for who in ("operator", "team's operator") for port in (443, 6443)),
    *((who, "names", port) for who in ("operator", "team's operator", "worker") for port in (53,)),
    *((who, "broker", port) for who in ("worker", "producer") for port in (5671, 5672)),
    # PostgreSQL, Redis and what speaks like S3 have ports of their own choice.
    *(
        (who, "database", port)
        for who in ("operator", "team's operator", "worker")
        for port in PORTS
    ),
    ("Prometheus", "operator", 8080),
    ("Prometheus", "team's operator", 8080),
    ("Prometheus", "broker", 15692),
}

#: What policies cannot tell apart: an address that no pod has may be the API server's.
TOLERATED = {
    (who, "internet", port) for who in ("operator", "team's operator") for port in (443, 6443)
} | {
    (who, target, port)
    for who in ("operator", "team's operator")
    for target in ("another tenant", "neighbour", "names", "producer", "Prometheus")
    for port in (443, 6443)
}
SELECTED = ("operator", "team's operator", "worker", "broker")


def shipped() -> list[Any]:
    policies = []
    for role, namespaces in NAMESPACES.items():
        for namespace in namespaces:
            policy = yaml.safe_load((FOLDER / role / "policy.yaml").read_text())
            policies.append({**policy, "metadata": {**policy["metadata"], "namespace": namespace}})
    return policies


@pytest.mark.parametrize(("source", "target", "port"), sorted(MUST_WORK))
def test_what_must_work_is_allowed(source: str, target: str, port: int) -> None:
    assert allows(shipped(), PEERS[source], PEERS[target], port)
    if (target, port) == ("names", 53):
        assert allows(shipped(), PEERS[source], PEERS[target], port, "UDP")


def test_nothing_else_is_allowed_to_or_from_our_pods() -> None:
    policies = shipped()
    allowed = {
        (source, target, port)
        for source, target in itertools.permutations(PEERS, 2)
        for port in PORTS
        if (source in SELECTED or target in SELECTED)
        and allows(policies, PEERS[source], PEERS[target], port)
    }
    assert allowed - TOLERATED == MUST_WORK


@pytest.mark.parametrize("role", NAMESPACES)
def test_a_policy_less_cuts_off_what_it_allowed(role: str) -> None:
    """Without its rules a policy allows nothing, so each of them is needed for something."""
    policies = shipped()
    for policy, direction in itertools.product(policies, ("ingress", "egress")):
        if policy["metadata"]["namespace"] not in NAMESPACES[role]:
            continue
        for number in range(len(policy["spec"].get(direction) or ())):
            spec = dict(policy["spec"])
            spec[direction] = [*spec[direction][:number], *spec[direction][number + 1 :]]
            others = [one for one in policies if one is not policy]
            changed = [*others, {**policy, "spec": spec}]
            cut_off = [
                one
                for one in MUST_WORK
                if not allows(changed, PEERS[one[0]], PEERS[one[1]], one[2])
            ]
            assert cut_off, f"{role}: {direction} rule {number} is for nothing"


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ({"ipBlock": {"cidr": "10.0.0.0/8"}}, True),
        ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.88.0.0/16"]}}, False),
        ({"ipBlock": {"cidr": "192.168.0.0/16"}}, False),
        ({"podSelector": {}}, False),
        ({"namespaceSelector": {}}, False),
    ],
)
def test_an_address_is_named_by_blocks_only(peer: dict[str, Any], allowed: bool) -> None:
    policy = {
        "metadata": {"namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]},
    }
    assert allows([policy], PEERS["worker"], PEERS["API server"], 443) == allowed


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ({"key": "app", "operator": "In", "values": ["oven"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["oven"]}, False),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["web"]}, True),
    ],
)
def test_labels_are_matched_by_expressions(expression: dict[str, Any], allowed: bool) -> None:
    peer = {"namespaceSelector": {}, "podSelector": {"matchExpressions": [expression]}}
    policy = {
        "metadata": {"namespace": "shop"},
        "spec": {
            "podSelector": {},
            "ingress": [{"from": [peer], "ports": [{"port": 80, "endPort": 90}]}],
        },
    }
    assert allows([policy], PEERS["another tenant"], PEERS["worker"], 85) == allowed
    assert not allows([policy], PEERS["another tenant"], PEERS["worker"], 91)
