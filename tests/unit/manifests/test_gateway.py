"""manifests/gateway gives the gateway no right, and lets in only whom its policy names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from taskqueue.gateway.settings import GatewaySettings
from tests.unit.manifests.network_policies import Peer, allows

FOLDER = Path(__file__).parents[3] / "manifests" / "gateway"
NAMESPACE = "taskqueue-system"
LABELS = {"app.kubernetes.io/name": "taskqueue-gateway"}

GATEWAY = Peer(NAMESPACE, LABELS)
INGRESS = Peer("ingress", {"app": "ingress"}, {"taskqueue.dev/calls-gateway": "true"})
TENANT = Peer("bakery", {"app": "oven"})
BROKER = Peer("rabbitmq", {"app.kubernetes.io/name": "rabbitmq"})


def objects() -> list[dict[str, Any]]:
    files = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [each for name in files for each in yaml.safe_load_all((FOLDER / name).read_text())]


def one(kind: str) -> dict[str, Any]:
    (found,) = (each for each in objects() if each["kind"] == kind)
    return found


def test_no_role_is_bound_to_it() -> None:
    kinds = {each["kind"] for each in objects()}
    assert kinds == {
        "ServiceAccount",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
        "NetworkPolicy",
    }


def test_it_has_time_to_drain() -> None:
    spec = one("Deployment")["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 2
    assert pod["terminationGracePeriodSeconds"] > GatewaySettings().drain_seconds + 20
    (container,) = pod["containers"]
    assert container["args"] == ["gateway"]
    assert container["ports"][0]["containerPort"] == GatewaySettings().port


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        (INGRESS, GATEWAY, 8000, True),
        (INGRESS, GATEWAY, 22, False),
        (TENANT, GATEWAY, 8000, False),
        (GATEWAY, BROKER, 5672, True),
        (GATEWAY, BROKER, 15672, False),
        (GATEWAY, TENANT, 80, False),
        (GATEWAY, Peer(address="10.88.0.1"), 6443, True),
    ],
)
def test_the_policy_lets_through_what_it_says(
    source: Peer, target: Peer, port: int, allowed: bool
) -> None:
    policy = one("NetworkPolicy")
    policy["metadata"]["namespace"] = NAMESPACE
    assert allows([policy], source, target, port) is allowed
