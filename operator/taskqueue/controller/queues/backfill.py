"""Finds the finished Tasks of a TaskQueue whose ends a sink lacks, and publishes them.

Contract:

* It looks when an archive is new or this operator begins to lead (a former one may have been killed
  between a final status and the event about it), and whenever an end was not passed on: the outbox
  was full, or somebody else has ended a Task.
* What is missing is what an archive does not have, or what a webhook is known to lack: `Kept`.
* It looks again until nothing is missing. What is in the outbox and not yet in the archive looks as
  if it was missing, and is published twice at worst: it looks when the outbox is nearly empty.
* While `is_behind`, no finished Task of the TaskQueue is handed to its time to live as it ends, and
  those found by listing never are: they are when nothing lacks them. So nothing is deleted that
  was not kept.
* What is older than the retention is not looked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from taskqueue.api.common import GROUP, VERSION
from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.finished_tasks import FinishedTask, finished_tasks
from taskqueue.controller.tasks.present_task import read_what_can_be
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import FINISHED, task_path
from taskqueue.logs import EventLog
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: From one look to the next, in seconds, while there is reason for one: at first, and at most.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
#: With more ends in the outbox it waits.
MOST_WAITING = 100


class Kept(Protocol):
    """What a sink has: an archive says by its rows, webhooks by what was not passed on to them."""

    async def missing(self, uids: Iterable[str]) -> set[str]:
        """Return those of these Tasks whose ends it lacks."""


class Backfill:
    """Publishes the ends that the sinks of one kind of a TaskQueue lack.

    Args:
        dispatcher: of the TaskQueue.
        client: for the API server.
        ends: publishes them.
        on_recorded: called with finished Tasks that no sink of the kind lacks.
        clock: wall time in seconds.
        on_published: called with the uid of each Task whose end is about to be published.
        requested: whether to look when it begins.

    Attributes:
        is_behind: ends may be neither in the sinks nor in their outboxes.
        waiting: ends in the fullest outbox, as last counted; None: unknown.
    """

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        client: ApiClient,
        ends: TaskEnds,
        on_recorded: Callable[[Sequence[FinishedTask]], None],
        clock: Clock,
        on_published: Callable[[str], None] = lambda uid: None,
        requested: bool = True,
    ) -> None:
        self.is_behind = False
        self.waiting: int | None = None
        self._dispatcher = dispatcher
        self._client = client
        self._ends = ends
        self._on_recorded = on_recorded
        self._clock = clock
        self._on_published = on_published
        self._requested = asyncio.Event()
        if requested:
            self._requested.set()

    def request(self, *, behind: bool = False) -> None:
        """Look soon; ``behind``: an end was not passed on, or the outbox is about to be made."""
        self.is_behind |= behind
        self._requested.set()

    async def run(self, kept: Kept, retention_seconds: int | None = None) -> None:
        """Look whenever there is reason to, until cancelled.

        Args:
            kept: says what is missing.
            retention_seconds: how long after its end a Task can be missing; None: for good.

        Raises: what ``kept`` does, such as ArchiveError.
        """
        pause = PAUSE_SECONDS
        while True:
            await self._requested.wait()
            if self.waiting is not None and self.waiting <= MOST_WAITING:
                self._requested.clear()
                self.is_behind = False  # what is not passed on from now on sets it again
                try:
                    if await self._publish_missing(kept, retention_seconds):
                        self._requested.set()
                        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    else:
                        pause = PAUSE_SECONDS
                except ApiError as error:
                    self.request(behind=True)
                    self._warn("ends.list_failed", error)
                except BaseException:
                    self.request(behind=True)
                    raise
            await asyncio.sleep(pause)

    async def _publish_missing(self, kept: Kept, retention_seconds: int | None) -> int:
        """Publish what is missing; return how much that was."""
        namespace, name = self._dispatcher.key
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks"
        selector, oldest = f"spec.queue={name},{FINISHED}", 0.0
        if retention_seconds is not None:
            oldest = self._clock() - retention_seconds
        count = 0
        async for page in finished_tasks(self._client, path=path, selector=selector):
            missing = await kept.missing(one.uid for one in page if one.completed >= oldest)
            self._on_recorded([one for one in page if one.uid not in missing])
            for one in page:
                if one.uid in missing:
                    await self._publish(one)
            count += len(missing)
        if count:
            log.info("ends.missing", namespace=namespace, queue=name, ends=count)
        return count

    async def _publish(self, found: FinishedTask) -> None:
        namespace = found.queue[0]
        try:
            raw = await self._client.get(task_path(namespace, found.name))
        except ApiError as error:
            if error.status == 404:
                self._on_published(found.uid)  # nobody has anything to say about it any more
                return
            raise
        task = read_what_can_be(raw)
        self._on_published(found.uid)
        if task is not None and task.uid == found.uid and task.status.phase.terminal:
            config = self._dispatcher.config
            self._ends.publish(
                task,
                task.status,
                raw["metadata"],
                None if config is None else config.archive,
                reported=False,
                publisher=lambda: self._dispatcher.publisher,
            )

    def _warn(self, event: str, problem: Exception) -> None:
        namespace, queue = self._dispatcher.key
        log.warning(event, namespace=namespace, queue=queue, error=str(problem))
