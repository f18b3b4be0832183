"""The parts that serve TaskBatches, put together: informer, controller, statuses, Events.

Items share dispatchers and inbox with Tasks; reads and writes have connections of their own:
whatever becomes of batches, statuses of Tasks are written, and the reverse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random

from taskqueue.api.common import TASKBATCH_KIND
from taskqueue.controller.batches.batch_controller import BatchController
from taskqueue.controller.completions.kubernetes_events import EventRecorder
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.kubernetes.batch_codec import BATCHES_PATH
from taskqueue.kubernetes.client import ApiAccess, ApiClient
from taskqueue.kubernetes.event_api import EventWriter, Regarding
from taskqueue.kubernetes.informer_group import InformerGroup
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.kubernetes.watch_scope import EVERYWHERE, WatchScope
from taskqueue.logs import EventLog
from taskqueue.model.batch import Batch, BatchState

log = EventLog(__name__)

_READERS = 4
_STATUS_WRITES = 8
#: How long Tasks wait for batches at the start of a leader, and a stop for their statuses.
_LEAD_SECONDS, _DRAIN_SECONDS = 10.0, 2.0


class BatchService:
    """Serves the TaskBatches of the namespaces that are served.

    Args:
        access: of the API server.
        tasks: tracks the items.
        instance: which operator this is, for Kubernetes Events.
        leads: returns whether this process certainly still leads.
        scope: the namespaces.
    """

    def __init__(
        self,
        access: ApiAccess,
        tasks: TaskController,
        *,
        instance: str = "",
        leads: Callable[[], bool] = lambda: True,
        scope: WatchScope = EVERYWHERE,
    ) -> None:
        paths = scope.paths(BATCHES_PATH)
        self._client = ApiClient(access, max_connections=_READERS, may_write=leads)
        self._writer_client = ApiClient(access, max_connections=_STATUS_WRITES, may_write=leads)
        self._feed_client = ApiClient(access, max_connections=1 + len(paths), timeout_seconds=60)
        self._updater = StatusUpdater(self._writer_client, concurrency=_STATUS_WRITES)
        self._events = EventRecorder(EventWriter(self._client, instance=instance), clock=time.time)
        self._controller = BatchController(
            self._client, self._updater, tasks, clock=time.time, on_ended=self._on_ended
        )
        self._informer = InformerGroup(
            self._feed_client,
            paths,
            self._controller,
            random=Random(),  # noqa: S311  (delays, not secrets)
            name="feed of TaskBatches",
        )
        self._led = asyncio.Event()
        self._drain_seconds = _DRAIN_SECONDS

    def skip_unwritten(self) -> None:
        """Do not write the remaining statuses when stopping: another leader will."""
        self._drain_seconds = 0.0

    async def lead(self) -> None:
        """Return when the batches are known that a former leader served, or may be no longer."""
        try:
            async with asyncio.timeout(_LEAD_SECONDS):
                await self._informer.catch_up()
                await self._controller.load()
        except TimeoutError:
            log.warning("batches.not_listed", hint="items may run once more that ran lately")
        self._controller.is_taking_over = False
        log.info("batches.listed", batches=len(self._controller))
        self._led.set()

    async def run(self) -> None:
        """Serve until cancelled, then write the remaining statuses."""
        writer = asyncio.create_task(self._updater.run(), name="batches: status writer")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._controller.run(), name="batches")
                group.create_task(self._events.run(), name="batches: Kubernetes Events")
                await self._led.wait()
                await self._informer.run()
        finally:
            if self._drain_seconds > 0:
                self._controller.close()
                await self._updater.drain(self._drain_seconds)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for client in (self._client, self._writer_client, self._feed_client):
                await client.close()

    def _on_ended(self, batch: Batch, state: BatchState) -> None:
        regarding = Regarding(
            kind=TASKBATCH_KIND, namespace=batch.namespace, name=batch.name, uid=batch.uid
        )
        self._events.on_batch_ended(regarding, state.phase, state.reason, state.message)
