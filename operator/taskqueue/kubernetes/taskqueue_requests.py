"""What the operator asks of the API server about one TaskQueue, its status apart."""

from __future__ import annotations

import time

from taskqueue.api.common import TASKQUEUE_KIND
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.events import WARNING, EventSpec, EventWriter, Regarding, event_name
from taskqueue.kubernetes.taskqueue_codec import QUEUES_FINALIZER, queue_path
from taskqueue.model.queue import QueueConfig

_REPORTER = "taskqueue-operator"


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
    regarding = Regarding(
        kind=TASKQUEUE_KIND, namespace=config.namespace, name=config.name, uid=config.uid
    )
    notice = EventSpec(
        regarding=regarding,
        type=WARNING,
        reason=reason,
        action="DeleteQueues",
        note=message,
        name=event_name(regarding),
    )
    await EventWriter(client, instance=_REPORTER).create(notice, at=time.time())
