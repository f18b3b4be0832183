"""The parts that serve schedules, put together: informers, controller, statuses, Events.

They share nothing with what serves Tasks, neither connections nor writes: whatever becomes of
schedules, Tasks run, and the reverse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random

from taskqueue.api.common import TASKSCHEDULE_KIND
from taskqueue.controller.completions.kubernetes_events import EventRecorder
from taskqueue.controller.schedules.schedule_controller import (
    RETRY_WORKERS,
    WORKERS,
    ScheduleController,
)
from taskqueue.kubernetes.client import ApiAccess, ApiClient
from taskqueue.kubernetes.event_api import EventWriter, Regarding
from taskqueue.kubernetes.informer import Key
from taskqueue.kubernetes.informer_group import InformerGroup
from taskqueue.kubernetes.schedule_codec import SCHEDULE_LABEL, SCHEDULES_PATH
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.kubernetes.watch_scope import EVERYWHERE, WatchScope
from taskqueue.logs import EventLog
from taskqueue.model.schedule import Schedule

log = EventLog(__name__)

#: Time-out of a request to create, cancel or delete a Task, in seconds.
_REQUEST_SECONDS = 10.0
#: Statuses written at once.
_STATUS_WRITES = 8
#: How long statuses may still be written after the stop, in seconds.
_DRAIN_SECONDS = 2.0


class ScheduleService:
    """Serves the TaskSchedules of the namespaces that are served.

    Args:
        access: of the API server.
        instance: which operator this is, for Kubernetes Events.
        leads: returns whether this process certainly still leads.
        scope: the namespaces.
    """

    def __init__(
        self,
        access: ApiAccess,
        *,
        instance: str = "",
        leads: Callable[[], bool] = lambda: True,
        scope: WatchScope = EVERYWHERE,
    ) -> None:
        schedules, tasks = scope.paths(SCHEDULES_PATH), scope.paths(TASKS_PATH)
        random = Random()  # noqa: S311  (delays, not secrets)
        self._client = ApiClient(
            access,
            max_connections=WORKERS + RETRY_WORKERS,
            timeout_seconds=_REQUEST_SECONDS,
            may_write=leads,
        )
        self._writer_client = ApiClient(access, max_connections=_STATUS_WRITES, may_write=leads)
        self._feed_client = ApiClient(
            access, max_connections=2 + len(schedules) + len(tasks), timeout_seconds=60
        )
        self._event_client = ApiClient(access, max_connections=1, may_write=leads)
        self._updater = StatusUpdater(self._writer_client, concurrency=_STATUS_WRITES)
        self._events = EventRecorder(
            EventWriter(self._event_client, instance=instance), clock=time.time
        )
        self._controller = ScheduleController(
            self._client,
            self._updater,
            clock=time.time,
            on_skipped=self._on_skipped,
            on_deleted=self._events.remove_schedule,
        )
        self._schedules = InformerGroup(
            self._feed_client,
            schedules,
            self._controller,
            random=random,
            name="feed of TaskSchedules",
        )
        self._runs = InformerGroup(
            self._feed_client,
            tasks,
            self._controller.runs,
            selectors={"labelSelector": SCHEDULE_LABEL},
            random=random,
            name="feed of scheduled Tasks",
        )
        self._synced = asyncio.Event()
        self._drain_seconds = _DRAIN_SECONDS

    def skip_unwritten(self) -> None:
        """Do not write the remaining statuses when stopping: another leader will."""
        self._drain_seconds = 0.0

    def is_unrecorded(self, key: Key) -> bool:
        """Return whether a Task must stay: as long as its schedule has not recorded its end."""
        return self._controller.is_unrecorded(key)

    async def run(self) -> None:
        """Serve until cancelled, then write the remaining statuses."""
        writer = asyncio.create_task(self._updater.run(), name="schedules: status writer")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._schedules.run(), name="feed of TaskSchedules")
                group.create_task(self._runs.run(), name="feed of scheduled Tasks")
                group.create_task(self._set_synced(), name="schedules: synced")
                group.create_task(self._events.run(), name="schedules: Kubernetes Events")
                group.create_task(self._controller.run(synced=self._synced), name="schedules")
        finally:
            await self._updater.drain(self._drain_seconds)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for client in (
                self._client,
                self._writer_client,
                self._feed_client,
                self._event_client,
            ):
                await client.close()

    async def _set_synced(self) -> None:
        await self._runs.synced.wait()
        await self._schedules.synced.wait()
        log.info("schedules.listed", schedules=len(self._controller))
        self._synced.set()

    def _on_skipped(self, schedule: Schedule, reason: str, message: str) -> None:
        regarding = Regarding(
            kind=TASKSCHEDULE_KIND,
            namespace=schedule.namespace,
            name=schedule.name,
            uid=schedule.uid,
        )
        self._events.on_run_skipped(regarding, reason, message)
