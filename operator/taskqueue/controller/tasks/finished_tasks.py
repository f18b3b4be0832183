"""Lists finished Tasks page by page, for the TTL controller: rows of a Table, never whole Tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.pages import ROWS, list_pages
from taskqueue.kubernetes.task_codec import FINISHED, TASKS_PATH
from taskqueue.kubernetes.task_table import WITH_METADATA, outlines
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import from_rfc3339

#: Rows per page. A page is parsed in one turn of the loop, while outcomes wait.
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
) -> AsyncGenerator[list[FinishedTask], None]:
    """Yield all finished Tasks, or those at a path that a field selector picks, page by page.

    Raises:
        ApiError: the list was refused or broke off.
    """
    params = {"fieldSelector": selector, **WITH_METADATA}
    async for page in list_pages(client, path, params, most=_PAGE, form=ROWS):
        yield [_read(outline) for outline in outlines(page.content)]


def _read(outline: Mapping[str, Any]) -> FinishedTask:
    metadata, spec = outline["metadata"], outline["spec"]
    at = outline["status"].get("completionTime") or metadata["creationTimestamp"]
    return FinishedTask(
        uid=metadata["uid"],
        queue=(metadata["namespace"], spec["queue"]),
        completed=from_rfc3339(at),
        name=metadata["name"],
        ttl=spec.get("ttlSecondsAfterFinished"),
    )
