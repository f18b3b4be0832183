"""Finds the ends that a former leader may not have published, for the sinks of their TaskQueues.

A Task whose object is gone has no end on record, and nobody has published one, if no operator saw
it being deleted, or the one that did was killed at once. So it is with a Task that ended without a
worker, and whose operator was killed after it had written that: an archive can be asked, a webhook
cannot. The API server remembers the changes of the last minute or more: they are read again from
where the former leader had dealt with everything.

A worker's report of an end is redelivered, so a Task that has succeeded is left out.

What is older than the API server remembers is lost, and said in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Mapping
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
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.task import Phase, TaskState
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
    config_of: Callable[[QueueKey], QueueConfig | None],
    publisher_of: Callable[[QueueKey], Publisher | None],
    ends: TaskEnds,
    clock: Clock,
) -> None:
    """Publish the ends of Tasks that were deleted, or ended without a worker, if a sink gets them.

    Args:
        client: with a connection to spare for a watch.
        since: the resource version up to which a former leader has done so; "": not known.
        paths: of the lists that together have all Tasks.
        tracked: the uids of unfinished Tasks: of all that there are.
        config_of: returns what a TaskQueue with a sink asks for; None: it has none.
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
            async with aclosing(_changes(client, path, int(since))) as changes:
                async for is_deleted, raw in changes:
                    await asyncio.sleep(0)  # there may be thousands that are there already
                    if raw["metadata"]["uid"] in tracked:
                        continue
                    key = _queue_of(raw)
                    if (config := config_of(key)) is None:
                        continue
                    if is_deleted or (config.webhooks and _ended_without_worker(raw)):
                        task = read_what_can_be(raw)
                        if task is None:
                            continue
                        count += 1
                        ends.publish(
                            task,
                            _end(task.status, clock),
                            raw["metadata"],
                            config.archive,
                            reported=False,
                            publisher=partial(publisher_of, key),
                        )
    except ApiError as error:
        if error.status != _EXPIRED:
            raise
        log.warning(
            "ends.deletions_unknown",
            since=since,
            hint="the API server does not remember what was deleted while no operator led: "
            "Tasks that were deleted then before they had ended are in no archive, and no webhook "
            "was sent for them",
        )
        return
    if count:
        log.info("ends.missed", ends=count)


async def _changes(
    client: ApiClient, path: str, since: int
) -> AsyncGenerator[tuple[bool, dict[str, Any]], None]:
    """Return the Tasks of a list that have changed from a resource version until now.

    Each with whether it was deleted.
    """
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
                if event["type"] != "BOOKMARK":
                    yield event["type"] == "DELETED", raw
                if version >= until:
                    break


def _queue_of(raw: Mapping[str, Any]) -> QueueKey:
    """Return the TaskQueue that an object names, which is not read as a whole: there are many."""
    spec = raw.get("spec")
    queue = spec.get("queue") if isinstance(spec, dict) else None
    return raw["metadata"]["namespace"], queue if isinstance(queue, str) else ""


def _ended_without_worker(raw: Mapping[str, Any]) -> bool:
    """Return whether a Task may have ended so."""
    status = raw.get("status")
    return (
        isinstance(status, dict)
        and status.get("phase") in (Phase.FAILED, Phase.CANCELLED)
        and "completionTime" in status
    )


def _end(status: TaskState, clock: Clock) -> TaskState:
    if status.phase.terminal and status.completion_time is not None:
        return status
    return lifecycle.deleted(status, now=clock())
