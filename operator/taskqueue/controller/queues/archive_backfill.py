"""Finds the finished Tasks of a TaskQueue whose ends its archive does not have, and publishes them.

Contract:

* It looks when an archive is new or this operator begins to lead (a former one may have been killed
  between a final status and the event about it), and whenever an end was not passed on: the outbox
  was full, or somebody else has ended a Task.
* It looks again until nothing is missing. What is in the outbox and not yet in the archive looks as
  if it was missing, and is published twice at worst: it looks when the outbox is nearly empty.
* While `is_behind`, no finished Task of the TaskQueue is handed to its time to live as it ends, and
  those found by listing never are: they are when the archive has them. So nothing is deleted that
  was not kept.
* What is older than the retention is not looked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskqueue.api.common import GROUP, VERSION
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.finished_tasks import FinishedTask, finished_tasks
from taskqueue.controller.tasks.present_task import read_what_can_be
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import FINISHED, task_path
from taskqueue.logs import EventLog
from taskqueue.model.queue import ArchiveConfig
from taskqueue.timestamps import Clock

if TYPE_CHECKING:
    from taskqueue.archive.archive import Archive

log = EventLog(__name__)

#: From one look to the next, in seconds, while there is reason for one: at first, and at most.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
#: With more ends in the outbox it waits.
MOST_WAITING = 100


class ArchiveBackfill:
    """Publishes the ends that one TaskQueue's archive does not have.

    Args:
        dispatcher: of the TaskQueue.
        client: for the API server.
        ends: publishes them.
        on_recorded: called with finished Tasks that the archive has, or need not have.
        clock: wall time in seconds.

    Attributes:
        is_behind: ends may be neither in the archive nor in its outbox.
        waiting: ends in the outbox, as last counted; None: unknown.
    """

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        client: ApiClient,
        ends: TaskEnds,
        on_recorded: Callable[[Sequence[FinishedTask]], None],
        clock: Clock,
    ) -> None:
        self.is_behind = False
        self.waiting: int | None = None
        self._dispatcher = dispatcher
        self._client = client
        self._ends = ends
        self._on_recorded = on_recorded
        self._clock = clock
        self._requested = asyncio.Event()
        self._requested.set()

    def request(self, *, behind: bool = False) -> None:
        """Look soon; ``behind``: an end was not passed on, or the outbox is about to be made."""
        self.is_behind |= behind
        self._requested.set()

    async def run(self, archive: Archive, config: ArchiveConfig) -> None:
        """Look whenever there is reason to, until cancelled.

        Raises:
            ArchiveError: the archive cannot be asked.
        """
        pause = PAUSE_SECONDS
        while True:
            await self._requested.wait()
            if self.waiting is not None and self.waiting <= MOST_WAITING:
                self._requested.clear()
                self.is_behind = False  # what is not passed on from now on sets it again
                try:
                    if await self._publish_missing(archive, config):
                        self._requested.set()
                        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    else:
                        pause = PAUSE_SECONDS
                except ApiError as error:
                    self.request(behind=True)
                    self._warn("archive.list_failed", error)
                except BaseException:
                    self.request(behind=True)
                    raise
            await asyncio.sleep(pause)

    async def _publish_missing(self, archive: Archive, config: ArchiveConfig) -> int:
        """Publish what is missing; return how much that was."""
        namespace, name = self._dispatcher.key
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks"
        selector, oldest = f"spec.queue={name},{FINISHED}", 0.0
        if config.retention_seconds is not None:
            oldest = self._clock() - config.retention_seconds
        count = 0
        async for page in finished_tasks(self._client, path=path, selector=selector):
            missing = await archive.missing(one.uid for one in page if one.completed >= oldest)
            self._on_recorded([one for one in page if one.uid not in missing])
            for one in page:
                if one.uid in missing:
                    await self._publish(one, config)
            count += len(missing)
        if count:
            log.info("archive.ends_missing", namespace=namespace, queue=name, ends=count)
        return count

    async def _publish(self, found: FinishedTask, config: ArchiveConfig) -> None:
        namespace = found.queue[0]
        try:
            raw = await self._client.get(task_path(namespace, found.name))
        except ApiError as error:
            if error.status == 404:
                return
            raise
        task = read_what_can_be(raw)
        if task is not None and task.uid == found.uid and task.status.phase.terminal:
            self._ends.publish(
                task,
                task.status,
                raw["metadata"],
                config,
                reported=False,
                publisher=lambda: self._dispatcher.publisher,
            )

    def _warn(self, event: str, problem: Exception) -> None:
        namespace, queue = self._dispatcher.key
        log.warning(event, namespace=namespace, queue=queue, error=str(problem))
