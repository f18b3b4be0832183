"""What the operator asks of the API server about one TaskQueue, its status apart."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from taskqueue.api.common import GROUP, TASKQUEUE_KIND, VERSION
from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.cluster.queue_objects import QUEUES_FINALIZER, queue_path
from taskqueue.domain.queue import QueueConfig

_REPORTER = "taskqueue-operator"
#: Longest note of an Event that the API server takes, in characters.
_NOTE_LIMIT = 1024


async def put_finalizer(client: ApiClient, config: QueueConfig, *, wanted: bool) -> None:
    """Put our finalizer on a TaskQueue, or take it away; one that is gone, or new, is left alone.

    Raises:
        ApiError: try again; 409 when others change the object all the time.
    """
    for last in (False, False, False, True):
        try:
            await _put_finalizer(client, config, wanted=wanted)
            return
        except ApiError as problem:
            if problem.status == 404:
                return
            if problem.status != 409 or last:
                raise


async def _put_finalizer(client: ApiClient, config: QueueConfig, *, wanted: bool) -> None:
    path = queue_path(config.key)
    metadata = (await client.get(path))["metadata"]
    present = metadata.get("finalizers", [])
    if metadata["uid"] != config.uid or (QUEUES_FINALIZER in present) is wanted:
        return
    if wanted and "deletionTimestamp" in metadata:
        return  # the API server takes no new ones
    others = [one for one in present if one != QUEUES_FINALIZER]
    changed = {
        "finalizers": [*others, QUEUES_FINALIZER] if wanted else others,
        # A precondition, for the patch replaces the list; kopf and users write at the same time.
        "resourceVersion": metadata["resourceVersion"],
    }
    await client.merge(path, {"metadata": changed})


async def warn(client: ApiClient, config: QueueConfig, *, reason: str, message: str) -> None:
    """Make a Warning Event about a TaskQueue.

    Raises:
        ApiError: refused.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    await client.request(
        "POST",
        f"/apis/events.k8s.io/v1/namespaces/{config.namespace}/events",
        body={
            "metadata": {"name": f"{config.name}.{uuid.uuid4().hex[:16]}"},
            "eventTime": now,
            "type": "Warning",
            "reason": reason,
            "action": reason,
            "note": message[:_NOTE_LIMIT],
            "reportingController": _REPORTER,
            "reportingInstance": _REPORTER,
            "regarding": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": TASKQUEUE_KIND,
                "namespace": config.namespace,
                "name": config.name,
                "uid": config.uid,
            },
        },
    )
