"""Adds the finalizer for a TaskQueue's queues at the broker, and removes it."""

from __future__ import annotations

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.taskqueue_codec import QUEUES_FINALIZER, queue_path
from taskqueue.model.queue import QueueConfig

#: Others, such as kopf and users, write the object at the same time.
_ATTEMPTS = 4


async def set_queues_finalizer(client: ApiClient, config: QueueConfig, *, wanted: bool) -> None:
    """Add the finalizer to a TaskQueue, or remove it.

    A TaskQueue that was deleted, or created again since, is not changed.

    Raises:
        ApiError: try again; 409 when others keep changing the object.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await _set_once(client, config, wanted=wanted)
            return
        except ApiError as error:
            if error.status == 404:
                return
            if error.status != 409 or attempt == _ATTEMPTS:
                raise


async def _set_once(client: ApiClient, config: QueueConfig, *, wanted: bool) -> None:
    path = queue_path(config.key)
    metadata = (await client.get(path))["metadata"]
    present = metadata.get("finalizers", [])
    if metadata["uid"] != config.uid or (QUEUES_FINALIZER in present) is wanted:
        return
    if wanted and "deletionTimestamp" in metadata:
        return  # the API server accepts no new finalizers
    others = [one for one in present if one != QUEUES_FINALIZER]
    changed = {
        "finalizers": [*others, QUEUES_FINALIZER] if wanted else others,
        # A precondition: the patch replaces the whole list.
        "resourceVersion": metadata["resourceVersion"],
    }
    await client.merge(path, {"metadata": changed})
