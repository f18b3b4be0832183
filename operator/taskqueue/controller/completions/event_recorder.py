"""Kubernetes Events about what a person may want to know: failures, cancellations, queue trouble.

Contract:

* Nothing is written for a Task that succeeds or a queue that is well. The first
  `TASK_EVENTS_PER_MINUTE` Tasks of a queue that fail or are cancelled within a minute have an Event
  each; the others of the minute are summed up in one on the TaskQueue.
* A queue's condition that is False for `SETTLE_SECONDS` is trouble: one Warning a reason. Trouble
  that comes back raises the count of the same Event, at most every `SERIES_SECONDS`. When the
  condition has been True as long, one Normal Event says that it is over.
* Events are a courtesy. No call here waits or raises; what cannot be written in time is dropped
  and counted, statuses and metrics tell it all the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from taskqueue.api.common import GROUP
from taskqueue.backoff import Backoff
from taskqueue.controller.metrics import NOTICES_DROPPED
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.events import (
    NORMAL,
    WARNING,
    EventSpec,
    EventWriter,
    Regarding,
    event_name,
)
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueKey
from taskqueue.model.task import Phase, Task, TaskState
from taskqueue.timestamps import Clock

log = EventLog(__name__)

TASK_EVENTS_PER_MINUTE = 10
MINUTE_SECONDS = 60.0
#: A condition must last this long, so that a start or a short break is not told.
SETTLE_SECONDS = 5.0
#: Shortest time between two writes of the same Event.
SERIES_SECONDS = 10.0
#: Events waiting to be written, at most.
WAITING_LIMIT = 1000
#: How often the API server is asked to take one, and the pauses between.
TRIES = 3
_FIRST_PAUSE_SECONDS = 1.0
#: Reasons a sum names.
_REASONS_NAMED = 5


@dataclass(slots=True)
class _Minute:
    """What ended in a queue since the minute's first."""

    told: int = 0
    summed: Counter[tuple[Phase, str]] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Series:
    """One Event, however often it happens."""

    notice: EventSpec
    at: float
    count: int = 1
    created: bool = False
    planned: bool = True
    written: float = 0.0


@dataclass(slots=True, eq=False)
class _Watch:
    """A condition of a queue: what it is, and what was told of it."""

    condition: Condition
    told: str | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Queue:
    uid: str
    watches: dict[str, _Watch] = field(default_factory=dict)
    series: dict[tuple[str, str, str], _Series] = field(default_factory=dict)


class EventRecorder:
    """See the module's contract. `run` must be running for anything to be written.

    Args:
        writer: writes Events.
        clock: wall time in seconds.
        waiting_limit: Events waiting to be written, at most.
    """

    def __init__(
        self, writer: EventWriter, *, clock: Clock, waiting_limit: int = WAITING_LIMIT
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._waiting_limit = waiting_limit
        self._waiting: deque[_Series] = deque()
        self._wake = asyncio.Event()
        self._minutes: dict[QueueKey, _Minute] = {}
        self._queues: dict[QueueKey, _Queue] = {}
        self._forbidden_told = False

    def on_task_ended(self, task: Task, status: TaskState) -> None:
        """Tell of a Task's final status, unless it succeeded."""
        if status.phase not in (Phase.FAILED, Phase.CANCELLED):
            return
        key = (task.namespace, task.spec.queue)
        minute = self._minutes.get(key)
        if minute is None:
            minute = self._minutes[key] = _Minute()
            loop = asyncio.get_running_loop()
            loop.call_later(MINUTE_SECONDS, self._sum_up, key)
        if minute.told >= TASK_EVENTS_PER_MINUTE:
            minute.summed[status.phase, status.reason or status.phase.value] += 1
            return
        minute.told += 1
        regarding = Regarding(kind="Task", namespace=task.namespace, name=task.name, uid=task.uid)
        self._put(
            EventSpec(
                regarding=regarding,
                type=WARNING if status.phase is Phase.FAILED else NORMAL,
                reason=status.reason or status.phase.value,
                action="EndTask",
                note=status.message or f"the Task is {status.phase.value}",
                name=event_name(regarding),
            )
        )

    def queue(self, key: QueueKey, uid: str, condition: Condition) -> None:
        """Take a TaskQueue's condition as it is now; called as often as one likes."""
        queue = self._known(key, uid)
        watch = queue.watches.get(condition.type)
        if watch is None:
            watch = queue.watches[condition.type] = _Watch(condition)
        watch.condition = condition
        if condition.status is None:
            return
        wanted = None if condition.status else condition.reason
        if wanted == watch.told:
            if watch.timer is not None:
                watch.timer.cancel()
                watch.timer = None
        elif watch.timer is None:
            loop = asyncio.get_running_loop()
            watch.timer = loop.call_later(SETTLE_SECONDS, self._settle, key, queue, watch)

    def warn(self, key: QueueKey, uid: str, *, reason: str, note: str) -> None:
        """Tell of something about a TaskQueue that no condition stands for."""
        queue = self._known(key, uid)
        self._tell(key, queue, "", Condition("", False, reason, note), WARNING)

    def forget(self, key: QueueKey) -> None:
        """Take note that a TaskQueue is gone; what is waiting is still written."""
        queue = self._queues.pop(key, None)
        for watch in queue.watches.values() if queue else ():
            if watch.timer is not None:
                watch.timer.cancel()

    async def run(self) -> None:
        """Write Events, one after the other, for ever."""
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            series = self._waiting.popleft()
            try:
                await self._write(series)
            except Exception as problem:  # a courtesy that fails must not end anything
                log.error("notice.failed", exc_info=problem, notice=series.notice.name)

    # What is told.

    def _known(self, key: QueueKey, uid: str) -> _Queue:
        queue = self._queues.get(key)
        if queue is None or queue.uid != uid:
            self.forget(key)
            queue = self._queues[key] = _Queue(uid)
        return queue

    def _settle(self, key: QueueKey, queue: _Queue, watch: _Watch) -> None:
        watch.timer = None
        condition = watch.condition
        if condition.status is None:
            return  # neither trouble nor its end: what was told stands
        watch.told = None if condition.status else condition.reason
        self._tell(key, queue, condition.type, condition, NORMAL if condition.status else WARNING)

    def _tell(
        self, key: QueueKey, queue: _Queue, kind: str, condition: Condition, type_: str
    ) -> None:
        series = queue.series.get((kind, type_, condition.reason))
        if series is not None:
            self._again(series)
            return
        regarding = _task_queue(key, queue.uid)
        note = condition.message or f"{kind} is {condition.reason}"
        queue.series[kind, type_, condition.reason] = self._put(
            EventSpec(
                regarding=regarding,
                type=type_,
                reason=condition.reason,
                action="Reconcile",
                note=note,
                name=event_name(regarding),
            )
        )

    def _sum_up(self, key: QueueKey) -> None:
        summed = self._minutes.pop(key).summed
        if not summed:
            return
        queue = self._queues.get(key)
        regarding = _task_queue(key, queue.uid if queue else "")
        failed = sum(number for (phase, _), number in summed.items() if phase is Phase.FAILED)
        reasons = [f"{reason} {number}" for (_, reason), number in summed.most_common()]
        named = ", ".join(reasons[:_REASONS_NAMED])
        if len(reasons) > _REASONS_NAMED:
            named += f" and {len(reasons) - _REASONS_NAMED} other reasons"
        self._put(
            EventSpec(
                regarding=regarding,
                type=WARNING if failed else NORMAL,
                reason="MoreTasksFailed" if failed else "MoreTasksCancelled",
                action="EndTask",
                note=f"{sum(summed.values())} more Tasks ended within a minute: {named}. List them "
                f"with kubectl get tasks.{GROUP} --field-selector spec.queue={key[1]}",
                name=event_name(regarding),
            )
        )

    # What is written.

    def _put(self, notice: EventSpec) -> _Series:
        series = _Series(notice, self._clock())
        self._enqueue(series)
        return series

    def _again(self, series: _Series) -> None:
        series.count += 1
        series.at = self._clock()
        if not series.planned:
            self._plan(series)

    def _plan(self, series: _Series) -> None:
        series.planned = True
        loop = asyncio.get_running_loop()
        wait = max(series.written + SERIES_SECONDS - loop.time(), 0.0)
        loop.call_later(wait, self._enqueue, series)

    def _enqueue(self, series: _Series) -> None:
        if len(self._waiting) >= self._waiting_limit:
            series.planned = False
            NOTICES_DROPPED.labels("full").inc()
            return
        self._waiting.append(series)
        self._wake.set()

    async def _write(self, series: _Series) -> None:
        try:
            written = await self._try(series)
        finally:
            series.planned = False
        if written is not None and series.count > written:
            self._plan(series)  # it happened again meanwhile

    async def _try(self, series: _Series) -> int | None:
        """Write an Event, and return the count it has now; None: given up."""
        backoff = Backoff(first_seconds=_FIRST_PAUSE_SECONDS)
        for left in reversed(range(TRIES)):
            try:
                written = await self._send(series)
            except ApiError as problem:
                if left and problem.transient and problem.status != 403:
                    await asyncio.sleep(problem.retry_after or backoff.next_delay())
                    continue
                self._refused(problem)
                return None
            self._forbidden_told = False
            series.written = asyncio.get_running_loop().time()
            return written
        return None

    async def _send(self, series: _Series) -> int:
        if series.created:
            count = series.count
            try:
                await self._writer.repeat(series.notice, count=count, at=series.at)
                return count
            except ApiError as problem:
                if problem.status != 404:
                    raise
            # Removed for its age: it begins anew.
            series.notice = replace(series.notice, name=event_name(series.notice.regarding))
            series.created, series.count = False, 1
        await self._writer.create(series.notice, at=series.at)
        series.created = True
        return 1

    def _refused(self, problem: ApiError) -> None:
        NOTICES_DROPPED.labels("refused").inc()
        if problem.status == 404 or "being terminated" in problem.message:
            return  # the namespace is on its way out
        if problem.status == 403:
            if self._forbidden_told:
                return
            self._forbidden_told = True
        log.warning(
            "notice.refused",
            problem=str(problem),
            hint="give the operator's role create and patch on events of events.k8s.io"
            if problem.status == 403
            else None,
        )


def _task_queue(key: QueueKey, uid: str) -> Regarding:
    return Regarding(kind="TaskQueue", namespace=key[0], name=key[1], uid=uid)
