"""The Secret that says how to reach a TaskQueue's broker, wherever spec.broker points to.

Either the Secret is named, or a RabbitmqCluster of the RabbitMQ Cluster Operator is: then it is the
Secret of that object's ``status.binding``. A cluster in another namespace is used only when it
allows the TaskQueue's namespace, by the annotation which the RabbitMQ operators have for it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import ClusterRef, QueueConfig

ALLOWED_NAMESPACES = "rabbitmq.com/topology-allowed-namespaces"
_CLUSTERS = "/apis/rabbitmq.com/v1beta1"


class NoBrokerSecret(Exception):
    """There is no such Secret, or it must not be used.

    Attributes:
        reason: CamelCase, for a condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BrokerSecret:
    """A Secret as found; its values are not shown."""

    namespace: str
    name: str
    where: str
    data: Mapping[str, str] = field(repr=False)


async def read_broker_secret(client: ApiClient, config: QueueConfig) -> BrokerSecret:
    """Read the Secret of a TaskQueue's broker.

    Raises:
        NoBrokerSecret: it does not exist, is not readable or not allowed; the text says what to do.
        ApiError: the API server could not be asked; try again.
    """
    if config.rabbitmq_cluster is None:
        namespace, name = config.namespace, config.connection_secret
        where = f"Secret {namespace}/{name} (spec.broker.connectionSecret)"
        cure = "create it with key uri, or host, username and password"
    else:
        cluster = config.rabbitmq_cluster
        namespace, name = cluster.namespace, await _bound_secret(client, config, cluster)
        where = f"Secret {namespace}/{name} (status.binding of RabbitmqCluster {cluster.name})"
        cure = "look at the RabbitMQ Cluster Operator, which makes it"
    try:
        secret = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    except ApiError as problem:
        if problem.status == 403:
            raise NoBrokerSecret(
                "SecretForbidden",
                f"{where}: the operator may not read it: give its role get on secrets",
            ) from None
        if problem.status == 404:
            raise NoBrokerSecret("SecretNotFound", f"{where} does not exist: {cure}") from None
        raise
    try:
        data = {
            key: base64.b64decode(value).decode()
            for key, value in (secret.get("data") or {}).items()
        }
    except (binascii.Error, UnicodeDecodeError) as problem:
        raise NoBrokerSecret(
            "SecretInvalid", f"{where}: a value is not UTF-8 text ({problem})"
        ) from None
    return BrokerSecret(namespace, name, where, data)


async def _bound_secret(client: ApiClient, config: QueueConfig, cluster: ClusterRef) -> str:
    where = (
        f"RabbitmqCluster {cluster.namespace}/{cluster.name} (spec.broker.rabbitmqClusterReference)"
    )
    path = f"{_CLUSTERS}/namespaces/{cluster.namespace}/rabbitmqclusters/{cluster.name}"
    try:
        found = await client.get(path)
    except ApiError as problem:
        if problem.status == 403:
            raise NoBrokerSecret(
                "ClusterForbidden",
                f"{where}: the operator may not read it: give its role get on rabbitmqclusters of "
                "rabbitmq.com",
            ) from None
        if problem.status != 404:
            raise
        if not await _has_clusters(client):
            raise NoBrokerSecret(
                "ClusterOperatorMissing",
                f"{where}: the API server knows no RabbitmqCluster: install the RabbitMQ Cluster "
                "Operator, or use connectionSecret",
            ) from None
        raise NoBrokerSecret(
            "ClusterNotFound", f"{where} does not exist: create it, or mend the reference"
        ) from None
    if not _allows(found, config.namespace):
        raise NoBrokerSecret(
            "ClusterNotAllowed",
            f"{where} does not allow namespace {config.namespace}: add it to the annotation "
            f"{ALLOWED_NAMESPACES} of the RabbitmqCluster",
        )
    binding = (found.get("status") or {}).get("binding") or {}
    name = binding.get("name")
    if not name:
        raise NoBrokerSecret(
            "ClusterNotReady",
            f"{where} has no status.binding yet: it is being made; looked at again by itself",
        )
    return str(name)


async def _has_clusters(client: ApiClient) -> bool:
    """Tell whether the API server has the kind at all; its 404 is the same either way."""
    try:
        kinds = await client.get(_CLUSTERS)
    except ApiError as problem:
        if problem.status == 404:
            return False
        raise
    return any(one.get("name") == "rabbitmqclusters" for one in kinds.get("resources", ()))


def _allows(cluster: Mapping[str, Any], namespace: str) -> bool:
    metadata = cluster["metadata"]
    if metadata["namespace"] == namespace:
        return True
    allowed = (metadata.get("annotations") or {}).get(ALLOWED_NAMESPACES, "")
    return bool({one.strip() for one in allowed.split(",")} & {"*", namespace})
