"""Deletes finished Tasks when their time to live is over.

Contract:

* A Task's own ttlSecondsAfterFinished counts, else its queue's at the time it is due: a default
  that was raised, or withdrawn, meanwhile is obeyed. `queue_changed` makes the janitor look for
  the finished Tasks that a new default is for.
* Only what has a time to live is held, about 300 bytes a Task; each once.
* A delete names the uid: a Task made anew under the name is another. That it is gone already, or
  another, is fine.
* A Task that an unfinished one depends on is left, and looked at again every few seconds.
* At most `DELETES_AT_ONCE` deletes are under way. One that fails is tried again, ever more slowly,
  and never holds up the others; while nothing succeeds all become slow. 429 is obeyed by all.
* What was found by listing, not seen ending, is left alone for `GRACE_SECONDS`: its end may not be
  announced yet by the operator that wrote it and was killed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from taskqueue.api.common import GROUP, VERSION
from taskqueue.backoff import Backoff
from taskqueue.controller.metrics import TTL_DELETIONS
from taskqueue.controller.tasks.finished_tasks import FinishedTask, finished_tasks
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import FINISHED, task_path
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.timestamps import Clock

log = EventLog(__name__)

DELETES_AT_ONCE = 4
#: How long until a Task that others depend on is looked at again.
NEEDED_SECONDS = 5.0
#: Shortest stay of a finished Task that was found by listing.
GRACE_SECONDS = 15.0
#: Clocks are coarse: a sleep of next to nothing would spin. Wall time may be set meanwhile.
_SHORTEST_SLEEP_SECONDS, _LONGEST_SLEEP_SECONDS = 0.01, 60.0
#: Pauses of one Task whose delete failed, and of all while nothing but failures comes.
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


class TtlController:
    """See the module's contract. `run` must be running for anything to be deleted.

    Args:
        client: for the API server.
        clock: wall time in seconds.
        ttl_of: the present taskDefaults.ttlSecondsAfterFinished of a queue; None: it has none, or
            there is no such queue.
        needed: whether an unfinished Task depends on the one of this namespace and name.
        random: for the pauses; gives numbers in [0, 1).
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        clock: Clock,
        ttl_of: Callable[[QueueKey], int | None],
        needed: Callable[[str, str], bool],
        random: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._clock = clock
        self._ttl_of = ttl_of
        self._needed = needed
        self._random = random
        #: (when due, tie-breaker, Task). Only an entry whose time is the one in `_due` counts.
        self._heap: list[tuple[float, int, _Finished]] = []
        self._due: dict[str, float] = {}
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        #: Queues whose finished Tasks are to be listed; None: all there are.
        self._to_list: set[QueueKey | None] = set()
        self._list_wake = asyncio.Event()
        self._backoff = Backoff(
            first_seconds=_FIRST_PAUSE, longest_seconds=_LONGEST_PAUSE, random=random
        )
        self._paused_until = 0.0

    def __len__(self) -> int:
        return len(self._due)

    def finished(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        queue: QueueKey,
        completed: float,
        ttl: int | None,
    ) -> None:
        """Take a Task whose final status is in the API server and has been announced.

        Args:
            namespace: of the Task.
            name: of the Task.
            uid: of the Task.
            queue: its TaskQueue.
            completed: status.completionTime, seconds since the epoch.
            ttl: its own ttlSecondsAfterFinished.
        """
        self._hold(_Finished(namespace, name, uid, queue, completed, ttl))

    def take(self, tasks: Iterable[FinishedTask]) -> None:
        """Take finished Tasks that were found by listing; those held already are left as is."""
        grace = self._clock() + GRACE_SECONDS
        for task in tasks:
            namespace = task.queue[0]
            self._hold(
                _Finished(
                    namespace, task.name, task.uid, task.queue, task.completed, task.ttl, grace
                )
            )

    def list_all(self) -> None:
        """Have every finished Task there is listed and taken."""
        self._list(None)

    def queue_changed(self, queue: QueueKey) -> None:
        """Take note that a queue has another default, or is new: its finished Tasks are listed."""
        if self._ttl_of(queue) is not None:
            self._list(queue)

    async def run(self, *, after: asyncio.Event | None = None) -> None:
        """Delete what is due, for ever; ``after`` is set once ``needed`` knows all there is."""
        if after is not None:
            await after.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._list_for_ever(), name="janitor: list")
            for _ in range(DELETES_AT_ONCE):
                group.create_task(self._delete_for_ever(), name="janitor: delete")

    # What is held.

    def _hold(self, task: _Finished) -> None:
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
        """Wait for a Task that is due by its present time to live; it is held no longer."""
        while True:
            sleep = _LONGEST_SLEEP_SECONDS
            while self._heap:
                at, _, task = self._heap[0]
                if self._due.get(task.uid) != at:
                    heapq.heappop(self._heap)
                    continue
                now = self._clock()
                if at > now:
                    sleep = min(max(at - now, _SHORTEST_SLEEP_SECONDS), sleep)
                    break
                heapq.heappop(self._heap)
                del self._due[task.uid]
                ttl = self._ttl(task)
                if ttl is None:
                    continue
                if task.completed + ttl > now:
                    self._hold(task)
                    continue
                return task
            self._wake.clear()
            try:
                async with asyncio.timeout(sleep):
                    await self._wake.wait()
            except TimeoutError:
                pass

    # Deleting.

    async def _delete_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            task = await self._next()
            while (left := self._paused_until - loop.time()) > 0:  # noqa: ASYNC110  (a time)
                await asyncio.sleep(max(left, _SHORTEST_SLEEP_SECONDS))
            # Last, so that nothing can come to depend on it between the look and the request.
            if self._needed(task.namespace, task.name):
                self._again(task, NEEDED_SECONDS)
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
        except ApiError as problem:
            if problem.status in (404, 409):
                return  # gone, or another Task by now
            self._failed(task, problem)
            return
        self._backoff.reset()
        TTL_DELETIONS.inc()
        log.info("task.expired", namespace=task.namespace, task=task.name, uid=task.uid)

    def _failed(self, task: _Finished, problem: ApiError) -> None:
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
            problem=str(problem),
            retry_seconds=round(retry, 2),
        )
        pause = self._backoff.next_delay()
        if problem.status == 429:
            pause = problem.retry_after or pause
            retry = max(retry, pause)
        loop = asyncio.get_running_loop()
        self._paused_until = max(self._paused_until, loop.time() + pause)
        self._again(task, retry)

    def _again(self, task: _Finished, seconds: float) -> None:
        task.not_before = self._clock() + seconds
        self._hold(task)

    # Listing.

    def _list(self, queue: QueueKey | None) -> None:
        self._to_list.add(queue)
        self._list_wake.set()

    async def _list_for_ever(self) -> None:
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
                self.take(await self._listed(queue))
                backoff.reset()
            except ApiError as problem:
                self._to_list.add(queue)
                log.warning("ttl.list_failed", queue=queue, problem=str(problem))
                await asyncio.sleep(problem.retry_after or backoff.next_delay())

    def _next_list(self) -> QueueKey | None:
        if None in self._to_list:
            self._to_list.clear()
            return None
        return self._to_list.pop()

    async def _listed(self, queue: QueueKey | None) -> list[FinishedTask]:
        if queue is None:
            return await finished_tasks(self._client)
        namespace, name = queue
        return await finished_tasks(
            self._client,
            path=f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/tasks",
            selector=f"spec.queue={name},{FINISHED}",
        )
