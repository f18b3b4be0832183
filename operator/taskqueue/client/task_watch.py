"""Watches one Task and yields its statuses until it has ended.

Contract of `watch_task`:

* The first status comes at once, and then only changes, in the order of the API server. A status
  that lasts only briefly may be missing.
* It ends after a final status. A Task that is deleted before is `TaskGone`, as is one that is
  created again under the same name. One that was seen in a final phase before its deletion has
  ended.
* A watch that breaks, ends or expires (410) is started again after a new read. An unreachable API
  server is retried without limit: the caller sets the timeout.
* A watch starts with the present state, not at the resource version of the read: that of a Task
  which has not changed for minutes may have expired. The present state comes from a cache that may
  be older than the read: older versions are skipped, and a different Task of the same name leads to
  a new read first. The cache sends nothing for a Task it does not have: after 5 s without an event
  there is a new read.
* A refusal (403) of the first read or the first watch is an error. A later one is retried for 30 s:
  an API server that has just started refuses requests until it knows the roles.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from taskqueue.api.common import API_VERSION, TASK_PLURAL
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.client.access import ApiConnection
from taskqueue.client.errors import TaskGone
from taskqueue.client.requests import client_error, is_transient
from taskqueue.client.status import TaskStatus, status_of
from taskqueue.kubernetes.client import ApiError
from taskqueue.logs import EventLog

log = EventLog("taskqueue.client")

_WATCH_SECONDS = 290
#: A watch of a Task that exists sends it at once.
_FIRST_EVENT_SECONDS = 5.0
#: How long an API server may refuse an action that it has allowed before.
_REFUSAL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Identifies one Task among those that had the same name at different times."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"Task {self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """Return the path of the object."""
        return task_path(self.namespace, self.name)


def tasks_path(namespace: str) -> str:
    """Return the path of a namespace's Tasks."""
    return f"/apis/{API_VERSION}/namespaces/{quote(namespace, safe='')}/{TASK_PLURAL}"


def task_path(namespace: str, name: str) -> str:
    """Return the path of a Task; its name may have any character but a slash."""
    return f"{tasks_path(namespace)}/{quote(name, safe='')}"


@dataclass(slots=True)
class LastSeen:
    """What a watch last saw, for the error of a caller that stops waiting.

    Attributes:
        status: the latest; None: none yet.
        error: why the API server cannot be reached now; "" when it can.
    """

    status: TaskStatus | None = None
    error: str = ""


async def watch_task(
    task: TaskRef, connection: ApiConnection, seen: LastSeen
) -> AsyncGenerator[TaskStatus, None]:
    """Yield the statuses of a Task; the module's docstring has the contract.

    Raises:
        TaskGone: it was deleted, or created again.
        Refused: the API server refused.
    """
    async with aclosing(watch_object(task, connection, seen)) as versions:
        async for raw in versions:
            yield status_of(raw)


async def watch_object(
    task: TaskRef, connection: ApiConnection, seen: LastSeen
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the object with each of the statuses of `watch_task`; the errors are the same."""
    watcher = _TaskWatcher(task, connection, seen)
    while True:
        try:
            raw = await watcher.get()
            if watcher.record_version(raw):
                yield raw
            if status_of(raw).finished:
                return
            watcher.backoff.succeeded()
            async with aclosing(watcher.watch(raw)) as versions:
                async for later in versions:
                    if watcher.record_version(later):
                        watcher.on_recovered()
                        yield later
                    if status_of(later).finished:
                        return
            if watcher.backoff.has_held():
                watcher.on_recovered()
        except ApiError as error:
            watcher.on_error(error)
        await watcher.wait_before_retry()


class _WatchExpired(Exception):
    """The API server no longer has the resource version of the watch."""


@dataclass(slots=True)
class _TaskWatcher:
    task: TaskRef
    connection: ApiConnection
    seen: LastSeen
    #: Actions that were allowed before, and since when they are refused.
    allowed: set[str] = field(default_factory=set)
    refused_since: dict[str, float] = field(default_factory=dict)
    retry_after: float = 0.0
    backoff: Backoff = field(
        default_factory=lambda: Backoff(
            held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time
        )
    )
    action: str = ""
    logged_error: str = ""

    async def get(self) -> dict[str, Any]:
        """Read the object."""
        self.action = "get"
        try:
            raw = await self.connection.requests.request("GET", self.task.path)
        except ApiError as error:
            if error.status == 404:
                raise self.gone_error("no longer exists") from None
            raise
        self._on_success()
        if raw["metadata"]["uid"] != self.task.uid:
            raise self.gone_error("was deleted, and another was created under its name")
        return raw

    async def watch(self, known: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield versions of the object that are not older than ``known``, until the watch ends."""
        self.action = "watch"
        events = self.connection.watches.watch(
            tasks_path(self.task.namespace),
            timeout_seconds=_WATCH_SECONDS,
            fieldSelector=f"metadata.name={self.task.name}",
            # With bookmarks it would be a streamed list, which not every etcd supports.
            resourceVersion="0",
        )
        try:
            # Closed when the caller stops, so that the connection is released.
            async with aclosing(events), asyncio.timeout(_FIRST_EVENT_SECONDS) as first_event:
                async for event in events:
                    if "problem" in event:
                        continue  # its status would seem to be another one
                    raw = self._object_of(event)
                    first_event.reschedule(None)
                    if _is_older(raw, known):
                        continue
                    if raw["metadata"]["uid"] != self.task.uid:
                        return
                    if event["type"] == "DELETED" and not status_of(raw).finished:
                        raise self.gone_error("was deleted")
                    yield raw
        except (TimeoutError, _WatchExpired):
            return

    def _object_of(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the object of a watch event."""
        raw: dict[str, Any] = event["object"]
        if event["type"] == "ERROR":
            if raw.get("code") == 410:
                raise _WatchExpired
            raise ApiError(int(raw.get("code", 0)), raw.get("reason", ""), raw.get("message", ""))
        self._on_success()
        return raw

    def record_version(self, raw: dict[str, Any]) -> bool:
        """Record a version of the object; return whether its status has changed."""
        status = status_of(raw)
        if status == self.seen.status:
            return False
        self.seen.status = status
        return True

    def on_recovered(self) -> None:
        """Reset the delays, and log the next error even if it is the same."""
        self.backoff.reset()
        self.logged_error = ""

    def on_error(self, error: ApiError) -> None:
        """Record and log a transient error; raise any other."""
        loop = asyncio.get_running_loop()
        if error.status in (401, 403) and self.action in self.allowed:
            since = self.refused_since.setdefault(self.action, loop.time())
            if loop.time() - since > _REFUSAL_SECONDS:
                raise client_error(error, f"{self.action} {self.task}") from error
        elif error.status != 410 and not is_transient(error):
            raise client_error(error, f"{self.action} {self.task}") from error
        self.retry_after = error.retry_after or 0.0
        self.seen.error = str(error)
        if self.seen.error != self.logged_error:
            self.logged_error = self.seen.error
            log.warning(
                "watch.interrupted",
                namespace=self.task.namespace,
                task=self.task.name,
                error=self.logged_error,
            )

    async def wait_before_retry(self) -> None:
        """Wait before the next read."""
        wait, self.retry_after = max(self.backoff.next_delay(), self.retry_after), 0.0
        await asyncio.sleep(wait)

    def gone_error(self, what: str) -> TaskGone:
        """Return the error for a Task that no longer exists."""
        last = f"; its last status was {self.seen.status}" if self.seen.status else ""
        return TaskGone(f"{self.task} {what}{last}", status=self.seen.status)

    def _on_success(self) -> None:
        self.allowed.add(self.action)
        self.refused_since.pop(self.action, None)
        self.seen.error = ""


def _is_older(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a version of an object is older than another."""
    versions = [each["metadata"]["resourceVersion"] for each in (one, other)]
    return all(map(str.isdigit, versions)) and int(versions[0]) < int(versions[1])
