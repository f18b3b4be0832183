"""Says whether NetworkPolicies allow a connection, by the rules of the Kubernetes API.

A connection is allowed if the policies of the pod that opens it allow it to leave, and those of the
pod it reaches allow it in. A pod that no policy of a direction selects is open in that direction.
What comes from a pod's own node is always let in. Ports are numbers here; the API has names, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """One end of a connection.

    Attributes:
        namespace: "": it is no pod.
        labels: of the pod.
        namespace_labels: of its namespace, apart from its name.
        address: where it is known.
    """

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def allows(
    policies: Iterable[Policy], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Return whether a connection may be opened; ``port`` is the target's own, after any NAT."""
    every = list(policies)
    return _allows(every, "Egress", source, target, port, protocol) and _allows(
        every, "Ingress", target, source, port, protocol
    )


def _allows(
    policies: list[Policy], direction: str, pod: Peer, other: Peer, port: int, protocol: str
) -> bool:
    if not pod.namespace:
        return True
    selecting = [one for one in policies if _selects(one, direction, pod)]
    if not selecting:
        return True
    key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return any(
        _names_port(rule, port, protocol) and _names_peer(rule.get(peers), other, policy)
        for policy in selecting
        for rule in policy["spec"].get(key) or ()
    )


def _selects(policy: Policy, direction: str, pod: Peer) -> bool:
    spec = policy["spec"]
    # Without policyTypes a policy is for ingress, and for egress if it has rules for that.
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return (
        direction in types
        and policy["metadata"]["namespace"] == pod.namespace
        and _matches(spec["podSelector"], pod.labels)
    )


def _names_port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        one.get("protocol", "TCP") == protocol
        and ("port" not in one or one["port"] <= port <= one.get("endPort", one["port"]))
        for one in ports
    )


def _names_peer(peers: list[Mapping[str, Any]] | None, other: Peer, policy: Policy) -> bool:
    return not peers or any(_is_peer(one, other, policy) for one in peers)


def _is_peer(peer: Mapping[str, Any], other: Peer, policy: Policy) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        inside = bool(other.address) and ip_address(other.address) in ip_network(block["cidr"])
        return inside and not any(
            ip_address(other.address) in ip_network(one) for one in block.get("except", ())
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        labels = {**other.namespace_labels, "kubernetes.io/metadata.name": other.namespace}
        if not _matches(peer["namespaceSelector"], labels):
            return False
    elif other.namespace != policy["metadata"]["namespace"]:
        return False
    return _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(one, labels) for one in selector.get("matchExpressions") or ()
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise ValueError(f"operator {expression['operator']} is not known")
