"""Deletes finished Tasks when their time to live is over.

Contract:

* A Task's own ttlSecondsAfterFinished applies, else its queue's default at the time it is due, so a
  default that was raised or removed meanwhile is respected. `on_queue_changed` lists the finished
  Tasks that a new default applies to.
* Only Tasks with a time to live are held, each once, with about 300 bytes per Task.
* A delete has the uid as a precondition, so it never hits another Task created under the name. If
  the Task is deleted already, or another has its name, the work is done.
* A Task that an unfinished one depends on stays, and is checked again every few seconds.
* At most `DELETES_AT_ONCE` deletes are in flight; of what is due, the namespaces take turns. A
  failed one is retried with backoff, and never delays the others; while all of a namespace fail,
  that namespace slows down. All respect a 429.
* Where there is an archive or a webhook, a Task is deleted only when its end is there, or in its
  outbox.
* A Task found by listing stays for at least `GRACE_SECONDS`: the operator that finished it may have
  been killed before it published the completion event.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

from taskqueue.api.common import GROUP, VERSION
from taskqueue.backoff import Backoff
from taskqueue.controller.metrics import TTL_DELETIONS
from taskqueue.controller.tasks.finished_tasks import FinishedTask, finished_tasks
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.namespace_turns import NamespaceTurns
from taskqueue.kubernetes.task_codec import FINISHED, TASKS_PATH, task_path
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import Clock

log = EventLog(__name__)

DELETES_AT_ONCE = 4
#: How long until a Task that others depend on is checked again.
NEEDED_SECONDS = 5.0
#: How long a finished Task stays at least that was found by listing.
GRACE_SECONDS = 15.0
#: A shorter sleep would spin, as clocks are coarse; a longer one would miss changes of wall time.
_SHORTEST_SLEEP_SECONDS, _LONGEST_SLEEP_SECONDS = 0.01, 60.0
#: Backoff of one Task whose delete failed, and of a namespace while every delete fails there.
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(slots=True, eq=False)
class _Finished:
    namespace: str
    name: str
    uid: str
    queue: QueueKey
    completed: float
    ttl: int | None
    not_before: float = 0.0
    backoff: Backoff | None = None  #: of its delete; None: none has failed


class _Pause:
    """Of a namespace whose deletes fail: after every few of them, and longer each time."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.until = 0.0
        self._failures = 0
        self._backoff = Backoff(
            first_seconds=_FIRST_PAUSE, longest_seconds=_LONGEST_PAUSE, random=random
        )

    def on_failure(self, now: float) -> float:
        """Count a failure; return for how many seconds from now the namespace pauses."""
        self._failures += 1
        if self._failures % DELETES_AT_ONCE == 0:
            self.until = now + self._backoff.next_delay()
        return max(self.until - now, 0.0)


class TtlController:
    """Deletes finished Tasks on time, while `run` is running.

    Args:
        client: for the API server.
        clock: wall time in seconds.
        ttl_of: the present taskDefaults.ttlSecondsAfterFinished of a queue; None: it has none, or
            there is no such queue.
        is_needed: whether an unfinished Task depends on the one of this namespace and name.
        is_held: whether others know which finished Tasks of a queue may be deleted, see `add_safe`:
            it has an archive, an end was not passed on, or another installation serves it.
        random: for the pauses; returns numbers in [0, 1).
        paths: of the lists that together have all Tasks.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        clock: Clock,
        ttl_of: Callable[[QueueKey], int | None],
        is_needed: Callable[[str, str], bool],
        is_held: Callable[[QueueKey], bool] = lambda key: False,
        random: Callable[[], float] = random.random,
        paths: Sequence[str] = (TASKS_PATH,),
    ) -> None:
        self._client = client
        self._paths = paths
        self._clock = clock
        self._ttl_of = ttl_of
        self._is_needed = is_needed
        self._is_held = is_held
        self._random = random
        #: (when due, tie-breaker, Task). Only an entry whose time is the one in `_due` counts.
        self._heap: list[tuple[float, int, _Finished]] = []
        self._due: dict[str, float] = {}
        #: Tasks whose time has come.
        self._ready: NamespaceTurns[tuple[float, _Finished]] = NamespaceTurns()
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        #: Queues whose finished Tasks are to be listed; None: all queues.
        self._to_list: set[QueueKey | None] = set()
        self._list_wake = asyncio.Event()
        #: Of namespaces whose last delete failed.
        self._pauses: dict[str, _Pause] = {}
        self._paused_until = 0.0

    def __len__(self) -> int:
        return len(self._due)

    def add(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        queue: QueueKey,
        completed: float,
        ttl: int | None,
    ) -> None:
        """Add a Task whose final status is written and whose completion event is published.

        Args:
            namespace: of the Task.
            name: of the Task.
            uid: of the Task.
            queue: its TaskQueue.
            completed: status.completionTime, seconds since the epoch.
            ttl: its own ttlSecondsAfterFinished.
        """
        self._schedule(_Finished(namespace, name, uid, queue, completed, ttl))

    def add_ended(self, tracked: TrackedTask) -> None:
        """Add a Task that has just ended, as `add` does."""
        task, completed = tracked.task, tracked.status.completion_time
        self.add(
            task.namespace,
            task.name,
            task.uid,
            queue=tracked.queue_key,
            completed=self._clock() if completed is None else completed,
            ttl=task.spec.overrides.ttl_seconds,
        )

    def add_listed(self, tasks: Iterable[FinishedTask]) -> None:
        """Add finished Tasks that were found by listing; those held already stay as they are.

        Whether a sink has the end of one is not known from a list: see `add_safe`.
        """
        grace = self._clock() + GRACE_SECONDS
        for task in tasks:
            if not self._is_held(task.queue):
                self._add_found(task, grace)

    def add_safe(self, tasks: Iterable[FinishedTask]) -> None:
        """Add finished Tasks that each sink has; those held already stay as they are."""
        for task in tasks:
            self._add_found(task, 0.0)

    def _add_found(self, task: FinishedTask, not_before: float) -> None:
        self._schedule(
            _Finished(
                task.queue[0],
                task.name,
                task.uid,
                task.queue,
                task.completed,
                task.ttl,
                not_before,
            )
        )

    def list_all(self) -> None:
        """Request a list of all finished Tasks; they are added."""
        self._request_list(None)

    def on_queue_changed(self, queue: QueueKey) -> None:
        """List the finished Tasks of a queue that is new, or has another default."""
        if self._ttl_of(queue) is not None:
            self._request_list(queue)

    async def run(self, *, after: asyncio.Event | None = None) -> None:
        """Delete what is due until cancelled, once ``after`` is set.

        Args:
            after: set once ``is_needed`` knows every unfinished Task.
        """
        if after is not None:
            await after.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._list_loop(), name="TTL controller: list")
            for _ in range(DELETES_AT_ONCE):
                group.create_task(self._delete_loop(), name="TTL controller: delete")

    # The heap.

    def _schedule(self, task: _Finished) -> None:
        ttl = self._ttl(task)
        if ttl is None:
            return
        at = max(task.completed + ttl, task.not_before)
        held = self._due.get(task.uid)
        if held is not None and held <= at:
            return
        self._due[task.uid] = at
        heapq.heappush(self._heap, (at, next(self._numbers), task))
        self._wake.set()

    def _ttl(self, task: _Finished) -> int | None:
        return self._ttl_of(task.queue) if task.ttl is None else task.ttl

    async def _next(self) -> _Finished:
        """Wait for a Task that is due by its present time to live, and let go of it."""
        while True:
            sleep = self._collect_due()
            while (found := self._ready.pop(self._is_awake)) is not None:
                at, task = found[1]
                if self._due.get(task.uid) == at and self._is_due(task):
                    return task
            pauses = (self._pauses[name].until - self._now() for name in self._ready)
            sleep = min(sleep, *pauses, _LONGEST_SLEEP_SECONDS)
            self._wake.clear()
            try:
                async with asyncio.timeout(max(sleep, _SHORTEST_SLEEP_SECONDS)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _collect_due(self) -> float:
        """Have those whose time has come wait for their turn; return when the next comes."""
        while self._heap:
            at, _, task = self._heap[0]
            if self._due.get(task.uid) == at:
                left = at - self._clock()
                if left > 0:
                    return left
                self._ready.add(task.namespace, (at, task))
            heapq.heappop(self._heap)
        return _LONGEST_SLEEP_SECONDS

    def _is_due(self, task: _Finished) -> bool:
        """Return whether a Task is due by its present time to live; if not, it is held again."""
        del self._due[task.uid]
        ttl = self._ttl(task)
        if ttl is None:
            return False
        if task.completed + ttl > self._clock():
            self._schedule(task)
            return False
        return True

    def _is_awake(self, namespace: str) -> bool:
        return namespace not in self._pauses or self._pauses[namespace].until <= self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    # Deleting.

    async def _delete_loop(self) -> None:
        while True:
            task = await self._next()
            while (left := self._paused_until - self._now()) > 0:  # noqa: ASYNC110  (a time)
                await asyncio.sleep(max(left, _SHORTEST_SLEEP_SECONDS))
            # Checked last, so that nothing can come to depend on it before the request.
            if self._is_needed(task.namespace, task.name):
                self._schedule_retry(task, NEEDED_SECONDS)
            else:
                await self._delete(task)

    async def _delete(self, task: _Finished) -> None:
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": task.uid},
            "propagationPolicy": "Background",
        }
        try:
            await self._client.send("DELETE", task_path(task.namespace, task.name), body=options)
        except ApiError as error:
            if error.status in (404, 409):
                return  # deleted already, or another Task by now
            self._on_delete_failed(task, error)
            return
        self._pauses.pop(task.namespace, None)
        TTL_DELETIONS.inc()
        log.info("task.expired", namespace=task.namespace, task=task.name, uid=task.uid)

    def _on_delete_failed(self, task: _Finished, error: ApiError) -> None:
        if task.backoff is None:
            task.backoff = Backoff(
                first_seconds=_FIRST_RETRY, longest_seconds=_LONGEST_RETRY, random=self._random
            )
        retry = task.backoff.next_delay()
        log.warning(
            "ttl.delete_failed",
            namespace=task.namespace,
            task=task.name,
            uid=task.uid,
            error=str(error),
            retry_seconds=round(retry, 2),
        )
        pause = self._pauses.setdefault(task.namespace, _Pause(self._random))
        seconds = pause.on_failure(self._now())
        if error.status == 429:
            seconds = error.retry_after or seconds
            retry = max(retry, seconds)
            self._paused_until = max(self._paused_until, self._now() + seconds)
        self._schedule_retry(task, retry)

    def _schedule_retry(self, task: _Finished, seconds: float) -> None:
        task.not_before = self._clock() + seconds
        self._schedule(task)

    # Listing.

    def _request_list(self, queue: QueueKey | None) -> None:
        self._to_list.add(queue)
        self._list_wake.set()

    async def _list_loop(self) -> None:
        backoff = Backoff(
            first_seconds=_FIRST_RETRY, longest_seconds=_LONGEST_SLEEP_SECONDS, random=self._random
        )
        while True:
            await self._list_wake.wait()
            if not self._to_list:
                self._list_wake.clear()
                continue
            queue = self._next_list()
            try:
                async for tasks in self._fetch(queue):
                    self.add_listed(tasks)
                backoff.reset()
            except ApiError as error:
                self._to_list.add(queue)
                log.warning("ttl.list_failed", queue=queue, error=str(error))
                await asyncio.sleep(error.retry_after or backoff.next_delay())

    def _next_list(self) -> QueueKey | None:
        if None in self._to_list:
            self._to_list.clear()
            return None
        return self._to_list.pop()

    async def _fetch(self, queue: QueueKey | None) -> AsyncIterator[list[FinishedTask]]:
        paths, selector = self._paths, FINISHED
        if queue is not None:
            namespace, name = queue
            paths = (f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks",)
            selector = f"spec.queue={name},{FINISHED}"
        for path in paths:
            async for tasks in finished_tasks(self._client, path=path, selector=selector):
                yield tasks
