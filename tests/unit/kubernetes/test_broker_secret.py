"""Finding the connection Secret of a TaskQueue, and the errors when it cannot be used."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from taskqueue.kubernetes.broker_secret import ALLOWED_NAMESPACES, read_broker_secret
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable
from taskqueue.model.queue import ClusterRef, QueueConfig

SECRET = {"data": {"host": "cmFiYml0", "username": "dQ=="}}
KIND = "/apis/rabbitmq.com/v1beta1"
CLUSTER = f"{KIND}/namespaces/broker/rabbitmqclusters/rabbit"
BOUND = "/api/v1/namespaces/broker/secrets/rabbit-default-user"
KNOWS = {"resources": [{"name": "rabbitmqclusters"}]}
NOT_FOUND = ApiError(404, "NotFound", "no")
FORBIDDEN = ApiError(403, "Forbidden", "no")


class FakeApi:
    """Answers by path; what it does not have is not found."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects

    async def get(self, path: str) -> Any:
        answer = self._objects.get(path, NOT_FOUND)
        if isinstance(answer, ApiError):
            raise answer
        return answer


def cluster(allowed: str | None = "shop", *, bound: bool = True) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "broker",
            "name": "rabbit",
            **({} if allowed is None else {"annotations": {ALLOWED_NAMESPACES: allowed}}),
        },
        **({"status": {"binding": {"name": "rabbit-default-user"}}} if bound else {}),
    }


def config(**fields: Any) -> QueueConfig:
    return QueueConfig(**{"namespace": "shop", "name": "q", "uid": "u", "generation": 1, **fields})


BY_CLUSTER = config(rabbitmq_cluster=ClusterRef("broker", "rabbit"))


async def read(objects: Mapping[str, Any], queue: QueueConfig = BY_CLUSTER) -> Any:
    return await read_broker_secret(cast(ApiClient, FakeApi(objects)), queue)


async def test_read_broker_secret_by_name() -> None:
    path = "/api/v1/namespaces/shop/secrets/rabbit"
    found = await read({path: SECRET}, config(connection_secret="rabbit"))
    assert (found.namespace, found.name) == ("shop", "rabbit")
    assert found.data == {"host": "rabbit", "username": "u"}
    assert found.where == "Secret shop/rabbit (spec.broker.connectionSecret)"
    assert "'u'" not in repr(found)


@pytest.mark.parametrize("allowed", ["shop", "a, shop ,b", "*", "x,*"])
async def test_read_broker_secret_of_a_cluster_by_its_binding(allowed: str) -> None:
    found = await read({CLUSTER: cluster(allowed), BOUND: SECRET})
    assert (found.namespace, found.name) == ("broker", "rabbit-default-user")
    assert found.data["host"] == "rabbit"


async def test_cluster_of_the_same_namespace_needs_no_annotation() -> None:
    queue = config(namespace="broker", rabbitmq_cluster=ClusterRef("broker", "rabbit"))
    assert await read({CLUSTER: cluster(None), BOUND: SECRET}, queue)


TROUBLES: list[tuple[str, dict[str, Any], str]] = [
    ("ClusterOperatorMissing", {}, "install the RabbitMQ Cluster Operator"),
    ("ClusterOperatorMissing", {KIND: {"resources": []}}, "install the RabbitMQ Cluster Operator"),
    ("ClusterNotFound", {KIND: KNOWS}, "does not exist: create it"),
    ("ClusterForbidden", {CLUSTER: FORBIDDEN}, "get on rabbitmqclusters of rabbitmq.com"),
    ("ClusterNotAllowed", {CLUSTER: cluster(None)}, "does not allow namespace shop: add it to"),
    ("ClusterNotAllowed", {CLUSTER: cluster("shopping,ashop")}, ALLOWED_NAMESPACES),
    ("ClusterNotAllowed", {CLUSTER: cluster(None, bound=False)}, "does not allow"),
    ("ClusterNotReady", {CLUSTER: cluster(bound=False)}, "no status.binding yet"),
    ("SecretNotFound", {CLUSTER: cluster()}, "rabbit-default-user (status.binding of"),
    ("SecretForbidden", {CLUSTER: cluster(), BOUND: FORBIDDEN}, "get on secrets"),
    ("SecretInvalid", {CLUSTER: cluster(), BOUND: {"data": {"host": "/w=="}}}, "not UTF-8"),
]


@pytest.mark.parametrize(("reason", "objects", "says"), TROUBLES)
async def test_read_broker_secret_names_what_is_missing(
    reason: str, objects: dict[str, Any], says: str
) -> None:
    with pytest.raises(SecretUnusable, match="broker/rabbit") as raised:
        await read(objects)
    assert raised.value.reason == reason
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "name", ["..", "../../kube-system/secrets/x", "a/../../x", "a?x", "a#", "%2e%2e", "a\n", "A"]
)
async def test_a_binding_that_is_no_name_leads_to_no_other_secret(name: str) -> None:
    """Whoever may write the status of a RabbitmqCluster has no right to other namespaces."""
    hostile = cluster()
    hostile["status"]["binding"]["name"] = name
    path = f"/api/v1/namespaces/broker/secrets/{name}"
    with pytest.raises(SecretUnusable, match="no name of a Secret"):
        await read({CLUSTER: hostile, path: SECRET})


@pytest.mark.parametrize("path", [CLUSTER, BOUND])
async def test_read_broker_secret_raises_api_errors_as_they_are(path: str) -> None:
    away = ApiError(503, "ServiceUnavailable", "no")
    with pytest.raises(ApiError):
        await read({CLUSTER: cluster(), BOUND: SECRET, path: away})
