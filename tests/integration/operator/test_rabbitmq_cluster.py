"""A TaskQueue whose broker a RabbitmqCluster of the RabbitMQ Cluster Operator stands for.

Of that operator only the kind is needed: a CRD as wide as its own, and what it writes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.e2e.api import Api, Body, Refused
from tests.e2e.harness import BROKER_HOST, Harness

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEFINITION: Body = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "rabbitmqclusters.rabbitmq.com"},
    "spec": {
        "group": "rabbitmq.com",
        "names": {
            "kind": "RabbitmqCluster",
            "listKind": "RabbitmqClusterList",
            "plural": "rabbitmqclusters",
            "singular": "rabbitmqcluster",
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
ALLOWED = "rabbitmq.com/topology-allowed-namespaces"


@pytest.fixture(scope="module")
def definition(api: Api) -> Iterator[None]:
    """The kind RabbitmqCluster, for the tests of this module."""
    path = f"{DEFINITIONS}/rabbitmqclusters.rabbitmq.com"
    with suppress(Refused):
        api.get(path)
        pytest.skip("this cluster has a RabbitMQ Cluster Operator of its own")
    yield
    with suppress(Refused):
        api.request("DELETE", path)


class Broker:
    """A RabbitmqCluster and its Secret, put in place piece by piece."""

    def __init__(self, harness: Harness, namespace: str) -> None:
        self._harness = harness
        self._core = f"/api/v1/namespaces/{namespace}"
        self._path = f"/apis/rabbitmq.com/v1beta1/namespaces/{namespace}/rabbitmqclusters"

    def create(self) -> None:
        body: Body = {
            "apiVersion": "rabbitmq.com/v1beta1",
            "kind": "RabbitmqCluster",
            "metadata": {"name": "tenants"},
        }
        self._harness.api.request("POST", self._path, body)

    def allow(self, namespaces: str) -> None:
        self._harness.api.patch(
            f"{self._path}/tenants", {"metadata": {"annotations": {ALLOWED: namespaces}}}
        )

    def bind(self) -> None:
        status = {"binding": {"name": "tenants-default-user"}}
        self._harness.api.patch(f"{self._path}/tenants/status", {"status": status})

    def secret(self) -> None:
        data = {
            "host": BROKER_HOST,
            "port": "5672",
            "username": self._harness.rabbitmq.username,
            "password": self._harness.rabbitmq.password,
            "provider": "rabbitmq",
            "type": "rabbitmq",
        }
        body = {"metadata": {"name": "tenants-default-user"}, "stringData": data}
        self._harness.api.request("POST", f"{self._core}/secrets", body)


def refer(harness: Harness, name: str, *, namespace: str | None = None, **spec: object) -> None:
    reference = {"name": "tenants", **({"namespace": namespace} if namespace else {})}
    broker = {"connectionSecret": None, "rabbitmqClusterReference": reference}
    harness.queue(name, broker=broker, scaling={"maxReplicas": 1}, **spec)


def define(harness: Harness) -> None:
    """Make the kind known; it takes objects a moment after."""
    harness.api.request("POST", DEFINITIONS, DEFINITION)
    kind = f"/apis/rabbitmq.com/v1beta1/namespaces/{harness.namespace}/rabbitmqclusters"

    def served() -> bool:
        with suppress(Refused):
            return bool(harness.api.get(kind))
        return False

    harness.until(served, what="served")


def test_each_piece_that_is_missing_is_named_until_tasks_run(
    harness: Harness, definition: None
) -> None:
    refer(harness, "q")
    message = harness.condition("BrokerConnected", "False", "ClusterOperatorMissing")
    assert "install the RabbitMQ Cluster Operator" in message
    define(harness)
    message = harness.condition("BrokerConnected", "False", "ClusterNotFound")
    assert f"RabbitmqCluster {harness.namespace}/tenants" in message
    broker = Broker(harness, harness.namespace)
    broker.create()
    harness.condition("BrokerConnected", "False", "ClusterNotReady")
    broker.bind()
    message = harness.condition("BrokerConnected", "False", "SecretNotFound")
    assert f"Secret {harness.namespace}/tenants-default-user (status.binding of" in message
    broker.secret()
    harness.ready()
    harness.task("over-a-cluster")
    assert harness.finished("over-a-cluster")["phase"] == "Succeeded"


def test_another_namespace_must_be_allowed_and_its_workers_bring_a_user(
    harness: Harness, definition: None, make_namespace: Callable[[], str]
) -> None:
    place = make_namespace()
    broker = Broker(harness, place)
    broker.create()
    broker.bind()
    broker.secret()
    refer(harness, "tenant", namespace=place, workers={"template": None})
    message = harness.condition("BrokerConnected", "False", "ClusterNotAllowed", "tenant")
    assert f"add it to the annotation {ALLOWED}" in message
    broker.allow(f"somebody, {harness.namespace}")
    harness.ready("tenant")

    template = harness.queues.versions("q")[-1]["spec"]["workers"]["template"]
    harness.change_queue("tenant", workers={"template": template})
    message = harness.condition("WorkersAvailable", "False", "InvalidTemplate", "tenant")
    assert "TASKQUEUE_BROKER_URI" in message
    (container,) = template["spec"]["containers"]
    own = {
        name: {"name": f"TASKQUEUE_BROKER_{name.upper()}", "valueFrom": {"secretKeyRef": ref}}
        for name in ("host", "username", "password")
        for ref in ({"name": "rabbit", "key": name},)
    }
    container = {**container, "env": list(own.values())}
    harness.change_queue("tenant", workers={"template": {"spec": {"containers": [container]}}})
    harness.ready("tenant")
    harness.task("of-a-tenant", queue="tenant")
    assert harness.finished("of-a-tenant")["phase"] == "Succeeded"
