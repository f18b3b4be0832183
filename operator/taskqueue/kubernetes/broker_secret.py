"""Finds and reads the connection Secret of a TaskQueue's broker.

``spec.broker`` names the Secret itself, or a RabbitmqCluster of the RabbitMQ Cluster Operator: then
the Secret is the one in that object's ``status.binding``. A cluster in another namespace is used
only when its annotation for the RabbitMQ Messaging Topology Operator allows the TaskQueue's
namespace.
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
    """The Secret does not exist, cannot be read, or must not be used.

    Attributes:
        reason: CamelCase, for a condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BrokerSecret:
    """A Secret, and where it was found; `repr` does not show its values."""

    namespace: str
    name: str
    where: str
    data: Mapping[str, str] = field(repr=False)


async def read_broker_secret(client: ApiClient, config: QueueConfig) -> BrokerSecret:
    """Read the Secret of a TaskQueue's broker.

    Raises:
        NoBrokerSecret: it does not exist, cannot be read or must not be used; the text says what to
            do.
        ApiError: the API server is not available; try again.
    """
    if config.rabbitmq_cluster is None:
        namespace, name = config.namespace, config.connection_secret
        where = f"Secret {namespace}/{name} (spec.broker.connectionSecret)"
        advice = "create it with the key uri, or with host, username and password"
    else:
        cluster = config.rabbitmq_cluster
        namespace, name = cluster.namespace, await _binding_secret(client, config, cluster)
        where = f"Secret {namespace}/{name} (status.binding of RabbitmqCluster {cluster.name})"
        advice = "check the RabbitMQ Cluster Operator, which creates it"
    return await read_secret(client, (namespace, name), where=where, advice=advice)


async def read_secret(
    client: ApiClient, key: tuple[str, str], *, where: str, advice: str
) -> BrokerSecret:
    """Read a Secret.

    Args:
        client: for the API server.
        key: namespace and name.
        where: names the Secret, and the field that names it.
        advice: what to do if there is none.

    Raises:
        NoBrokerSecret, ApiError: see `read_broker_secret`.
    """
    namespace, name = key
    try:
        secret = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    except ApiError as error:
        if error.status == 403:
            raise NoBrokerSecret(
                "SecretForbidden",
                f"{where}: the operator may not read it: grant its role get on secrets",
            ) from None
        if error.status == 404:
            raise NoBrokerSecret("SecretNotFound", f"{where} does not exist: {advice}") from None
        raise
    return BrokerSecret(namespace, name, where, secret_data(secret, where))


def secret_data(secret: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the texts in a Secret object; ``where`` names it.

    Raises:
        NoBrokerSecret: a value is not text.
    """
    try:
        return {
            key: base64.b64decode(value).decode()
            for key, value in (secret.get("data") or {}).items()
        }
    except (binascii.Error, UnicodeDecodeError) as error:
        raise NoBrokerSecret(
            "SecretInvalid", f"{where}: a value is not UTF-8 text ({error})"
        ) from None


async def _binding_secret(client: ApiClient, config: QueueConfig, cluster: ClusterRef) -> str:
    where = (
        f"RabbitmqCluster {cluster.namespace}/{cluster.name} (spec.broker.rabbitmqClusterReference)"
    )
    path = f"{_CLUSTERS}/namespaces/{cluster.namespace}/rabbitmqclusters/{cluster.name}"
    try:
        found = await client.get(path)
    except ApiError as error:
        if error.status == 403:
            raise NoBrokerSecret(
                "ClusterForbidden",
                f"{where}: the operator may not read it: grant its role get on rabbitmqclusters of "
                "rabbitmq.com",
            ) from None
        if error.status != 404:
            raise
        if not await _has_clusters(client):
            raise NoBrokerSecret(
                "ClusterOperatorMissing",
                f"{where}: the API server has no kind RabbitmqCluster: install the RabbitMQ "
                "Cluster Operator, or use connectionSecret",
            ) from None
        raise NoBrokerSecret(
            "ClusterNotFound", f"{where} does not exist: create it, or correct the reference"
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
            f"{where} has no status.binding yet: the cluster is being created; it is checked again "
            "automatically",
        )
    return str(name)


async def _has_clusters(client: ApiClient) -> bool:
    """Whether the API server has the kind: its 404 for a missing object looks the same."""
    try:
        kinds = await client.get(_CLUSTERS)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return any(each.get("name") == "rabbitmqclusters" for each in kinds.get("resources", ()))


def _allows(cluster: Mapping[str, Any], namespace: str) -> bool:
    metadata = cluster["metadata"]
    if metadata["namespace"] == namespace:
        return True
    allowed = (metadata.get("annotations") or {}).get(ALLOWED_NAMESPACES, "")
    return bool({each.strip() for each in allowed.split(",")} & {"*", namespace})
