"""Tasks that the command line and the gateway create. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: An object of the API server.
Object = dict[str, Any]

#: What a retry does not take over: it would hold the new Task, or end it at once.
_NOT_RETRIED = ("cancel", "suspend", "startAfter")
#: Says which Task a Task is a retry of.
RETRY_OF = "taskqueue.dev/retry-of"
_LABEL_LENGTH = 63
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def manifest(metadata: Object, spec: Object) -> Object:
    """Return a Task object."""
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "Task",
        "metadata": metadata,
        "spec": spec,
    }


def retry_of(task: Mapping[str, Any]) -> Object:
    """Return the Task that runs a finished one's work again."""
    metadata = task["metadata"]
    name = metadata["name"]
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key != RETRY_OF}
    if len(name) <= _LABEL_LENGTH:
        labels[RETRY_OF] = name
    annotations = {
        key: value
        for key, value in metadata.get("annotations", {}).items()
        if key not in (RETRY_OF, _LAST_APPLIED)
    }
    return manifest(
        {
            "generateName": f"{name[:200]}-retry-",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": {**annotations, RETRY_OF: name},
        },
        {key: value for key, value in task["spec"].items() if key not in _NOT_RETRIED},
    )
