"""The informer of unfinished Tasks, which works from before an operator leads until it ends.

Contract:

* A standby lists and watches as the leader does, and keeps the Tasks, without their payloads. So a
  takeover does not wait for a list, however many Tasks there are.
* What a standby knows may be old. `TaskFeed.lead` first reads what was written before it was
  called, thus before this operator led, then hands the Tasks over, and sets `TaskFeed.synced`:
  what a former leader claimed, recalled or recorded is known before anything is published.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, Protocol

from taskqueue.controller.tasks.payloads import size_problem
from taskqueue.controller.tasks.tracked_task import SeenTask
from taskqueue.kubernetes.client import ApiAccess, ApiClient, version_of
from taskqueue.kubernetes.informer import Key, ResourceEventHandler, identity
from taskqueue.kubernetes.informer_group import InformerGroup
from taskqueue.kubernetes.task_codec import (
    TASKS_PATH,
    UNFINISHED,
    problem_of,
    read_payload,
    read_task,
)
from taskqueue.kubernetes.watch_scope import EVERYWHERE, WatchScope
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Tasks handed over in one turn of the loop: it has a Lease to renew.
_TASKS_A_TURN = 500


class TaskHandler(ResourceEventHandler, Protocol):
    """Serves the Tasks, once this operator leads."""

    def adopt(self, seen: SeenTask) -> None:
        """Take a Task that was seen before this operator led."""


class StandbyTasks:
    """Keeps what an informer shows, until this operator leads."""

    def __init__(self) -> None:
        #: Each is a `SeenTask`, or an object's metadata and why it cannot be read.
        self._kept: dict[str, SeenTask | tuple[dict[str, Any], str]] = {}

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Keep a Task that is new or changed."""
        try:
            problem = size_problem(len(read_payload(raw)))
            seen = SeenTask(read_task(raw), version_of(raw["metadata"]), problem)
        except (ValueError, KeyError, TypeError) as error:
            self.on_unreadable(raw, problem_of(error))
        else:
            self.keep(seen)

    def keep(self, seen: SeenTask) -> None:
        """Keep a Task as it was seen."""
        self._kept[seen.task.uid] = seen

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Keep what identifies a Task."""
        (namespace, name), uid = identity(raw)
        generation = raw["metadata"].get("generation")
        metadata = {"namespace": namespace, "name": name, "uid": uid, "generation": generation}
        self._kept[uid] = {"metadata": metadata}, problem

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Drop a Task that left the informer."""
        self.discard(uid)

    def discard(self, uid: str) -> None:
        """Keep a Task no more."""
        self._kept.pop(uid, None)

    def __len__(self) -> int:
        """Return how many Tasks are kept."""
        return len(self._kept)

    async def hand_over(self, handler: TaskHandler) -> None:
        """Pass on what is kept, and keep it no more; nothing may be shown meanwhile."""
        while self._kept:
            self.hand_over_some(handler)
            await asyncio.sleep(0)

    def hand_over_some(self, handler: TaskHandler) -> list[str]:
        """Pass on as many as one turn of the loop has time for; return their uids."""
        uids = list(itertools.islice(self._kept, _TASKS_A_TURN))
        for uid in uids:
            match self._kept.pop(uid):
                case SeenTask() as seen:
                    handler.adopt(seen)
                case raw, problem:
                    handler.on_unreadable(raw, problem)
        return uids


class TaskFeed:
    """Shows the unfinished Tasks: kept while this operator is a standby, served once it leads.

    Args:
        access: of the API server.
        random: for delays.
        scope: the namespaces whose Tasks are shown.

    Attributes:
        run: keeps up with the Tasks until cancelled; cancel it, and call `lead` before the next.
        synced: set once the handler has all Tasks as they were when this operator began to lead.
        before_synced: awaited before that: what else is to be known before anything is published.
    """

    def __init__(
        self, access: ApiAccess, *, random: Random, scope: WatchScope = EVERYWHERE
    ) -> None:
        paths = scope.paths(TASKS_PATH)
        self._client = ApiClient(access, max_connections=1 + len(paths), timeout_seconds=60)
        self._tasks = StandbyTasks()
        self._informer = InformerGroup(
            self._client,
            paths,
            self._tasks,
            selectors={"fieldSelector": UNFINISHED},
            random=random,
            name="feed of Tasks",
        )
        self.run = self._informer.run
        self.synced = asyncio.Event()
        self.before_synced: Callable[[], Awaitable[None]] = _nothing

    @property
    def is_listed(self) -> bool:
        """Whether all Tasks that existed at the start are known: a standby can take over soon."""
        return self._informer.synced.is_set()

    @property
    def uid_of(self) -> Callable[[Key], str | None]:
        """Returns the uid that the informer shows under a name."""
        return self._informer.uid_of

    async def lead(self, handler: TaskHandler) -> None:
        """Hand over the Tasks to who serves them from now on."""
        await self._informer.catch_up()
        log.info("tasks.caught_up", tasks=len(self._tasks))
        await self._tasks.hand_over(handler)
        self._informer.handler = handler
        log.info("tasks.handed_over")
        await self.before_synced()
        self.synced.set()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


async def _nothing() -> None:
    """Wait for nothing."""
