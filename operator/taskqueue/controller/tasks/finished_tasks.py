"""Lists finished Tasks page by page, for the TTL controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.task_codec import FINISHED, TASKS_PATH
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import from_rfc3339

#: Objects per page. A page is parsed in one turn of the loop, while outcomes wait.
_PAGE = 250


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """What the deletion of a finished Task depends on; ``ttl`` is its own, in seconds."""

    uid: str
    queue: QueueKey
    completed: float
    name: str = ""
    ttl: int | None = None


async def finished_tasks(
    client: ApiClient, *, path: str = TASKS_PATH, selector: str = FINISHED
) -> list[FinishedTask]:
    """Return every finished Task there is, or those at a path that a field selector picks.

    Raises:
        ApiError: the list was refused or broke off.
    """
    found: list[FinishedTask] = []
    token = ""
    while True:
        params = {"limit": str(_PAGE), "fieldSelector": selector}
        if token:
            params["continue"] = token
        page = await client.request("GET", path, params=params)
        found += [_read(raw) for raw in page["items"]]
        token = page["metadata"].get("continue", "")
        if not token:
            return found


def _read(raw: Mapping[str, Any]) -> FinishedTask:
    metadata, status = raw["metadata"], raw["status"]
    at = status.get("completionTime") or metadata["creationTimestamp"]
    return FinishedTask(
        uid=metadata["uid"],
        queue=(metadata["namespace"], raw["spec"]["queue"]),
        completed=from_rfc3339(at),
        name=metadata["name"],
        ttl=raw["spec"].get("ttlSecondsAfterFinished"),
    )
