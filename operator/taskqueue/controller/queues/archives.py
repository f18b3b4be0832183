"""The archives of all TaskQueues: which ends are safe, and which finished Tasks may be deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from taskqueue.backoff import Backoff
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.queues.archive_backfill import ArchiveBackfill
from taskqueue.controller.queues.archiver import Archiver
from taskqueue.controller.queues.missed_ends import publish_missed_ends
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.controller.tasks.task_controller import TaskController
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.logs import EventLog
from taskqueue.model.queue import ArchiveConfig, QueueConfig, QueueKey
from taskqueue.timestamps import Clock

log = EventLog(__name__)


class Archives:
    """Makes the archiver of each TaskQueue, and knows them all.

    Args:
        client: for the API server.
        installation: in names at the broker.
        ends: publishes ends that an archive does not have.
        on_recorded: called with finished Tasks that their archive has, or need not have.
        since: resource version up to which a former leader has dealt with everything.
        clock: wall time in seconds.
        paths: of the lists that together have all Tasks.

    Attributes:
        is_settled: whether the deletions since then are known.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        installation: str,
        ends: TaskEnds,
        on_recorded: Callable[[Sequence[FinishedTask]], None],
        since: str,
        clock: Clock,
        paths: Sequence[str] = (TASKS_PATH,),
    ) -> None:
        self._client = client
        self._paths = paths
        self._installation = installation
        self._ends = ends
        self._on_recorded = on_recorded
        self._clock = clock
        self._archived: dict[QueueKey, tuple[Archiver, ArchiveConfig]] = {}
        self._since = since
        self.is_settled = False

    def make(self, config: QueueConfig, dispatcher: Dispatcher) -> Archiver:
        """Return the archiver of a TaskQueue that has just become known."""
        archiver = Archiver(
            config.key,
            client=self._client,
            installation=self._installation,
            backfill=ArchiveBackfill(
                dispatcher=dispatcher,
                client=self._client,
                ends=self._ends,
                on_recorded=self._on_recorded,
                clock=self._clock,
            ),
            clock=self._clock,
        )
        if config.archive is not None:
            self._archived[config.key] = archiver, config.archive
        return archiver

    def on_reconfigured(self, config: QueueConfig, old: QueueConfig, archiver: Archiver) -> None:
        """Take note that a TaskQueue is changed: it may have an archive now, or none any more."""
        if config.archive is None:
            self._archived.pop(config.key, None)
        elif config.archive != old.archive:
            self._archived[config.key] = archiver, config.archive
            archiver.backfill.request(behind=True)  # until there is an outbox
        elif config.policy.ttl_seconds != old.policy.ttl_seconds:
            archiver.backfill.request()  # to find what that is new for

    def remove(self, key: QueueKey) -> None:
        """Take note that a TaskQueue is deleted."""
        self._archived.pop(key, None)

    async def find_missed_ends(self, tasks: TaskController) -> None:
        """Publish the ends of Tasks that were deleted while nobody led, and are not tracked."""
        backoff = Backoff()
        while self._archived and not self.is_settled:
            try:
                await publish_missed_ends(
                    self._client,
                    self._since,
                    paths=self._paths,
                    tracked=tasks.tasks,
                    archive_of=self.archive_of,
                    publisher_of=lambda key: tasks.dispatcher(key).publisher,
                    ends=self._ends,
                    clock=self._clock,
                )
                break
            except ApiError as error:
                log.warning("archive.watch_failed", error=str(error))
                await asyncio.sleep(error.retry_after or backoff.next_delay())
        self.is_settled = True

    def archive_of(self, key: QueueKey) -> ArchiveConfig | None:
        """Return where the ends of a TaskQueue's Tasks are kept; None: nowhere."""
        archived = self._archived.get(key)
        return None if archived is None else archived[1]

    def is_archived(self, key: QueueKey) -> bool:
        """Return whether a TaskQueue has an archive."""
        return key in self._archived

    def is_safe(self, key: QueueKey) -> bool:
        """Return whether an end whose event is confirmed is in the archive or its outbox.

        Where there is no archive, nobody needs it.
        """
        archived = self._archived.get(key)
        return archived is None or not archived[0].backfill.is_behind

    def look_for_ends(self, key: QueueKey, *, behind: bool = False) -> None:
        """Look soon for ends that were not passed on; ``behind``: there is one."""
        archived = self._archived.get(key)
        if archived is not None:
            archived[0].backfill.request(behind=behind)
