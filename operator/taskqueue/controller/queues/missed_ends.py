"""Finds the Tasks that were deleted while nobody led, for their archives.

A Task whose object is gone has no end on record, and nobody has published one, if no operator saw
it being deleted, or the one that did was killed at once. The API server remembers the deletions of
the last minute or more: they are read again from where the former leader had dealt with everything.

What is older than the API server remembers is lost, and said in the log.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Container, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

from taskqueue.amqp.publisher import Publisher
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.present_task import read_what_can_be
from taskqueue.kubernetes.client import ApiClient, ApiError, version_of
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.logs import EventLog
from taskqueue.model.queue import ArchiveConfig, QueueKey
from taskqueue.model.task import TaskState
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: A watch as short as this has a bookmark before its end.
_WATCH_SECONDS = 3
_EXPIRED = 410


async def publish_missed_ends(
    client: ApiClient,
    since: str,
    *,
    paths: Iterable[str] = (TASKS_PATH,),
    tracked: Container[str],
    archive_of: Callable[[QueueKey], ArchiveConfig | None],
    publisher_of: Callable[[QueueKey], Publisher | None],
    ends: TaskEnds,
    clock: Clock,
) -> None:
    """Publish the ends of Tasks that were deleted until now, if they are to be archived.

    Args:
        client: with a connection to spare for a watch.
        since: the resource version up to which a former leader has done so; "": not known.
        paths: of the lists that together have all Tasks.
        tracked: the uids of unfinished Tasks: of all that there are.
        archive_of: returns where the ends of a TaskQueue's Tasks are kept; None: nowhere.
        publisher_of: returns what reaches its broker.
        ends: publishes them.
        clock: wall time in seconds.

    Raises:
        ApiError: try again.
    """
    if not since.isdecimal():
        return
    count = 0
    try:
        for path in paths:
            async with aclosing(_deletions(client, path, int(since))) as deletions:
                async for raw in deletions:
                    if raw["metadata"]["uid"] in tracked:
                        continue
                    task = read_what_can_be(raw)
                    if task is None:
                        continue
                    key = (task.namespace, task.spec.queue)
                    if (archive := archive_of(key)) is not None:
                        count += 1
                        ends.publish(
                            task,
                            _end(task.status, clock),
                            raw["metadata"],
                            archive,
                            reported=False,
                            publisher=partial(publisher_of, key),
                        )
    except ApiError as error:
        if error.status != _EXPIRED:
            raise
        log.warning(
            "archive.deletions_unknown",
            since=since,
            hint="the API server does not remember what was deleted while no operator led: "
            "Tasks that were deleted then before they had ended are in no archive",
        )
        return
    if count:
        log.info("archive.missed_ends", ends=count)


async def _deletions(
    client: ApiClient, path: str, since: int
) -> AsyncGenerator[dict[str, Any], None]:
    """Return the Tasks of a list that were deleted from a resource version until now."""
    version, goes_on = since, True
    listed = await client.get(path, limit="1")
    until = version_of(listed["metadata"])
    # Over an etcd that reports no progress, a watch without events never gets there.
    while goes_on and version < until:
        goes_on = False
        watch = client.watch(
            path,
            timeout_seconds=_WATCH_SECONDS,
            resourceVersion=str(version),
            allowWatchBookmarks="true",
        )
        async with aclosing(watch) as events:
            async for event in events:
                raw = event["object"]
                if event["type"] == "ERROR":
                    raise ApiError(int(raw.get("code", 0)), "Watch", raw.get("message", ""))
                version = version_of(raw["metadata"])
                goes_on |= event["type"] != "BOOKMARK"
                if event["type"] == "DELETED":
                    yield raw
                if version >= until:
                    break


def _end(status: TaskState, clock: Clock) -> TaskState:
    if status.phase.terminal and status.completion_time is not None:
        return status
    return lifecycle.deleted(status, now=clock())
