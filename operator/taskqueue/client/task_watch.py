"""Follow one Task: every status it is seen in, until it has ended or is gone.

Contract of `follow`:

* The first status comes at once; afterwards only changes, in the order of the API server. What
  lasted shortly may be left out.
* It ends after a finished status. A Task that is deleted meanwhile is `TaskGone`, as is one made
  anew under its name; one that was seen finished before it was deleted has ended.
* A watch that breaks, ends, or whose place the API server has forgotten (410), is begun again after
  a fresh look. An API server that is away is waited for without end: the caller has the clock.
* A watch begins with what is there, not at the version of the look: that of a Task which has not
  changed for minutes may be forgotten already. Such a beginning comes from a cache, which may be
  behind the look: what is older is left out, and another Task of the name is looked for again
  before it is believed. It says nothing of what is not there: after 5 s of that comes another look.
* A refusal (403) at the first look, or at the first watch, is an error. Later it is trouble like
  another for 30 s: an API server that has just started refuses until it knows the roles.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

from taskqueue.api.common import API_VERSION, TASK_PLURAL
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.client.access import ApiConnection
from taskqueue.client.errors import TaskGone
from taskqueue.client.requests import passing, refusal
from taskqueue.client.status import TaskStatus, status_of
from taskqueue.kubernetes.client import ApiError
from taskqueue.logs import EventLog

log = EventLog("taskqueue.client")

_WATCH_SECONDS = 290
#: A watch of a Task that exists begins with it, at once.
_BEGINNING_SECONDS = 5.0
#: How long an API server may refuse what it has allowed before.
_REFUSAL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Which Task, and which of those that bear its name one after another."""

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
    """Return the path of a Task, whatever its name; it has no slash."""
    return f"{tasks_path(namespace)}/{quote(name, safe='')}"


@dataclass(slots=True)
class LastSeen:
    """What a follower knows, for errors of whoever stops following.

    Attributes:
        status: the latest; None: none yet.
        trouble: why the API server tells nothing now; empty: it does.
    """

    status: TaskStatus | None = None
    trouble: str = ""


async def follow(
    task: TaskRef, connected: ApiConnection, seen: LastSeen
) -> AsyncGenerator[TaskStatus, None]:
    """Yield statuses; see the module's contract.

    Raises:
        TaskGone: deleted, or made anew.
        Refused: by the API server.
    """
    follower = _TaskWatcher(task, connected, seen)
    while True:
        try:
            shown = await follower.look()
            if follower.changed(shown):
                yield status_of(shown)
            if status_of(shown).finished:
                return
            follower.backoff.succeeded()
            async with aclosing(follower.watch(shown)) as versions:
                async for later in versions:
                    if follower.changed(later):
                        follower.settle()
                        yield status_of(later)
                    if status_of(later).finished:
                        return
            if follower.backoff.has_held():
                follower.settle()
        except ApiError as problem:
            follower.judge(problem)
        await follower.pause()


class _WatchExpired(Exception):
    """The API server no longer knows the place a watch has come to."""


@dataclass(slots=True)
class _TaskWatcher:
    task: TaskRef
    connected: ApiConnection
    seen: LastSeen
    #: What was allowed before, and since when it is not.
    allowed: set[str] = field(default_factory=set)
    refused_since: dict[str, float] = field(default_factory=dict)
    retry_after: float = 0.0
    backoff: Backoff = field(
        default_factory=lambda: Backoff(
            held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time
        )
    )
    asking: str = ""
    told: str = ""

    async def look(self) -> dict[str, Any]:
        """Return the object as it is."""
        self.asking = "look at"
        try:
            shown = await self.connected.requests.request("GET", self.task.path)
        except ApiError as problem:
            if problem.status == 404:
                raise self.gone("does not exist any more") from None
            raise
        self._permitted()
        if shown["metadata"]["uid"] != self.task.uid:
            raise self.gone("was deleted, and another was made under its name")
        return shown

    async def watch(self, looked: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the object's versions from the one that was looked at, until the watch ends."""
        self.asking = "watch"
        events = self.connected.watches.watch(
            tasks_path(self.task.namespace),
            timeout_seconds=_WATCH_SECONDS,
            fieldSelector=f"metadata.name={self.task.name}",
            # With bookmarks it would be a streamed list, which not every etcd is good for.
            resourceVersion="0",
        )
        try:
            # Events are closed when the caller goes: the connection is given back.
            async with aclosing(cast(Any, events)), asyncio.timeout(_BEGINNING_SECONDS) as begin:
                async for event in events:
                    raw = self._read(event)
                    begin.reschedule(None)
                    if _older(raw, looked):
                        continue
                    if raw["metadata"]["uid"] != self.task.uid:
                        return
                    if event["type"] == "DELETED" and not status_of(raw).finished:
                        raise self.gone("was deleted")
                    yield raw
        except (TimeoutError, _WatchExpired):
            return

    def _read(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the object of an event."""
        raw: dict[str, Any] = event["object"]
        if event["type"] == "ERROR":
            if raw.get("code") == 410:
                raise _WatchExpired
            raise ApiError(int(raw.get("code", 0)), raw.get("reason", ""), raw.get("message", ""))
        self._permitted()
        return raw

    def changed(self, shown: dict[str, Any]) -> bool:
        """Take note of a version; tell whether its status is another than before."""
        status = status_of(shown)
        if status == self.seen.status:
            return False
        self.seen.status = status
        return True

    def settle(self) -> None:
        """Take note that all is well."""
        self.backoff.reset()
        self.told = ""

    def judge(self, problem: ApiError) -> None:
        """Take note of trouble, or raise what will not pass."""
        loop = asyncio.get_running_loop()
        if problem.status in (401, 403) and self.asking in self.allowed:
            since = self.refused_since.setdefault(self.asking, loop.time())
            if loop.time() - since > _REFUSAL_SECONDS:
                raise refusal(problem, f"{self.asking} {self.task}") from problem
        elif problem.status != 410 and not passing(problem):
            raise refusal(problem, f"{self.asking} {self.task}") from problem
        self.retry_after = problem.retry_after or 0.0
        self.seen.trouble = str(problem)
        if self.seen.trouble != self.told:
            self.told = self.seen.trouble
            log.warning(
                "task.unwatched",
                namespace=self.task.namespace,
                task=self.task.name,
                problem=self.told,
            )

    async def pause(self) -> None:
        """Wait before the next look."""
        wait, self.retry_after = max(self.backoff.next_delay(), self.retry_after), 0.0
        await asyncio.sleep(wait)

    def gone(self, what: str) -> TaskGone:
        """Return the error for a Task that is not there."""
        last = f"; it was last seen {self.seen.status}" if self.seen.status else ""
        return TaskGone(f"{self.task} {what}{last}", status=self.seen.status)

    def _permitted(self) -> None:
        self.allowed.add(self.asking)
        self.refused_since.pop(self.asking, None)
        self.seen.trouble = ""


def _older(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether a version of an object is before another one."""
    versions = [each["metadata"]["resourceVersion"] for each in (one, other)]
    return all(map(str.isdigit, versions)) and int(versions[0]) < int(versions[1])
