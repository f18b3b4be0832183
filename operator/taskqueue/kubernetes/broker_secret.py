"""Finds and reads the connection Secret of a TaskQueue's broker.

``spec.broker`` names the Secret itself, or a RabbitmqCluster of the RabbitMQ Cluster Operator: then
the Secret is the one in that object's ``status.binding``. A cluster in another namespace is used
only when its annotation for the RabbitMQ Messaging Topology Operator allows the TaskQueue's
namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable, SecretValues, read_secret
from taskqueue.model.queue import ClusterRef, QueueConfig

ALLOWED_NAMESPACES = "rabbitmq.com/topology-allowed-namespaces"
_CLUSTERS = "/apis/rabbitmq.com/v1beta1"


async def read_broker_secret(client: ApiClient, config: QueueConfig) -> SecretValues:
    """Read the Secret of a TaskQueue's broker.

    Raises:
        SecretUnusable: it does not exist, cannot be read or must not be used; the text says what to
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


async def _binding_secret(client: ApiClient, config: QueueConfig, cluster: ClusterRef) -> str:
    where = (
        f"RabbitmqCluster {cluster.namespace}/{cluster.name} (spec.broker.rabbitmqClusterReference)"
    )
    path = f"{_CLUSTERS}/namespaces/{cluster.namespace}/rabbitmqclusters/{cluster.name}"
    try:
        found = await client.get(path)
    except ApiError as error:
        if error.status == 403:
            raise SecretUnusable(
                "ClusterForbidden",
                f"{where}: the operator may not read it: grant its role get on rabbitmqclusters of "
                "rabbitmq.com",
            ) from None
        if error.status != 404:
            raise
        if not await _has_clusters(client):
            raise SecretUnusable(
                "ClusterOperatorMissing",
                f"{where}: the API server has no kind RabbitmqCluster: install the RabbitMQ "
                "Cluster Operator, or use connectionSecret",
            ) from None
        raise SecretUnusable(
            "ClusterNotFound", f"{where} does not exist: create it, or correct the reference"
        ) from None
    if not _allows(found, config.namespace):
        raise SecretUnusable(
            "ClusterNotAllowed",
            f"{where} does not allow namespace {config.namespace}: add it to the annotation "
            f"{ALLOWED_NAMESPACES} of the RabbitmqCluster",
        )
    binding = (found.get("status") or {}).get("binding") or {}
    name = binding.get("name")
    if not name:
        raise SecretUnusable(
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
