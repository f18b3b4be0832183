"""How the objects that the operator makes for a TaskQueue are named, marked and owned."""

from __future__ import annotations

from typing import Any

from taskqueue.api.common import GROUP, TASKQUEUE_KIND, VERSION
from taskqueue.model.queue import QueueConfig

FIELD_MANAGER = "taskqueue-operator"
MANAGED_BY = {"app.kubernetes.io/managed-by": FIELD_MANAGER}

#: Suffix of the names of these objects.
SUFFIX = "-worker"


def worker_name(queue: str) -> str:
    """Return the name of the Deployment and the ConfigMap for a TaskQueue's workers."""
    return f"{queue}{SUFFIX}"


def owner_reference(config: QueueConfig) -> dict[str, Any]:
    """Return the reference by which an object is deleted with its TaskQueue."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": TASKQUEUE_KIND,
        "name": config.name,
        "uid": config.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
