"""The limits of direct messages for the workers of a TaskQueue, in a ConfigMap of the operator's.

They are no part of the pod template: an edit of them must not replace pods that run long attempts.
The pods mount the ConfigMap, and workers read its files again. Its keys are the names of the
environment variables for the same, which older workers read once, when their container starts.
"""

from __future__ import annotations

from typing import Any

from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.ownership import FIELD_MANAGER, MANAGED_BY, owner_reference, worker_name
from taskqueue.kubernetes.taskqueue_codec import QUEUE_LABEL
from taskqueue.model.queue import QueueConfig

#: Where the pods mount it, and the variable that names that place to workers.
DIRECTORY = "/etc/taskqueue/limits"
DIRECTORY_VARIABLE = "TASKQUEUE_LIMITS_DIRECTORY"

_VOLUME = "taskqueue-limits"


def direct_limits(config: QueueConfig) -> dict[str, str]:
    """Return the limits, by the name of their variable."""
    return {
        "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": str(config.policy.attempt_timeout_seconds),
        "TASKQUEUE_MAX_DELIVERIES": str(config.policy.max_deliveries),
    }


async def apply_direct_limits(client: ApiClient, config: QueueConfig) -> None:
    """Create or update the ConfigMap.

    Raises:
        ApiError: refused or unreachable.
    """
    name = worker_name(config.name)
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": config.namespace,
            "labels": {QUEUE_LABEL: config.name, **MANAGED_BY},
            "ownerReferences": [owner_reference(config)],
        },
        "data": direct_limits(config),
    }
    path = f"/api/v1/namespaces/{config.namespace}/configmaps/{name}"
    await client.apply(path, body, manager=FIELD_MANAGER)


def mount_direct_limits(
    config: QueueConfig, spec: dict[str, Any], container: dict[str, Any], names: list[str]
) -> None:
    """Add the volume with the limits of these names to a pod's spec and a container's mounts.

    Nothing waits for the ConfigMap: a pod without it starts with the defaults.
    """
    items = [{"key": name, "path": name} for name in names]
    source = {"name": worker_name(config.name), "optional": True, "items": items}
    spec["volumes"] = [*(spec.get("volumes") or []), {"name": _VOLUME, "configMap": source}]
    mount = {"name": _VOLUME, "mountPath": DIRECTORY, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]


def limit_entry(config: QueueConfig, name: str) -> dict[str, Any]:
    """Return the entry of a container's environment for a limit, which older workers read."""
    reference = {"name": worker_name(config.name), "key": name, "optional": True}
    return {"name": name, "valueFrom": {"configMapKeyRef": reference}}
