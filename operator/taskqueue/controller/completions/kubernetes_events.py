"""Kubernetes Events about what a person may want to know: failures, cancellations, queue trouble.

Contract:

* Nothing is written for a Task that succeeds or a queue without trouble. The first
  `TASK_EVENTS_PER_MINUTE` Tasks of a queue that fail or are cancelled within a minute get an Event
  each; one Event on the TaskQueue sums up the others of that minute. So it is with Tasks that
  cannot be recorded, apart from those: nothing but the Event says what became of them.
* A queue's condition that is False for `SETTLE_SECONDS` is trouble: one Warning a reason. Trouble
  that comes back raises the count of the same Event. When the condition has been True as long,
  one Normal Event reports the end. So an Event is repeated after twice that time at the earliest.
* A schedule has one Event for each reason to skip a run, and each further run raises its count.
* Events are best effort. No call here waits or raises; what cannot be written in time is dropped
  and counted; statuses and metrics have it all the same.
* Those of a namespace are written one after the other, and wait for no other namespace's. When many
  wait, a namespace has its share of the room, whatever the others have.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from taskqueue.api.common import GROUP
from taskqueue.backoff import Backoff
from taskqueue.controller.metrics import EVENTS_DROPPED
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.event_api import (
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
#: A condition must last this long, so that a start or a short break causes no Event.
SETTLE_SECONDS = 5.0
#: Events waiting to be written, at most: this divided by the number of namespaces that have some.
WAITING_LIMIT = 1000
#: Attempts to write one, and the first pause between them.
TRIES = 3
_FIRST_PAUSE_SECONDS = 1.0
#: What the operator was doing, in the words of an Event.
_END_TASK, _WRITE_STATUS = "EndTask", "WriteStatus"
#: Reasons that a sum names.
_REASONS_NAMED = 5


@dataclass(slots=True)
class _Minute:
    """Tasks of a queue since the minute's first; those without an Event, by type and reason."""

    written: int = 0
    summed: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Series:
    """One Event, however often it happens."""

    spec: EventSpec
    at: float
    count: int = 1
    created: bool = False
    queued: bool = True


@dataclass(slots=True, eq=False)
class _Watch:
    """A condition of a queue, and the reason last reported for it; None: it was True."""

    condition: Condition
    reported: str | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Queue:
    uid: str
    watches: dict[str, _Watch] = field(default_factory=dict)
    series: dict[tuple[str, str, str], _Series] = field(default_factory=dict)


class EventRecorder:
    """Records Events about Tasks and TaskQueues; `run` must be running for any to be written.

    Args:
        writer: writes Events.
        clock: wall time in seconds.
        waiting_limit: as `WAITING_LIMIT`.
    """

    def __init__(
        self, writer: EventWriter, *, clock: Clock, waiting_limit: int = WAITING_LIMIT
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._waiting_limit = waiting_limit
        #: Of each namespace that is being written; the last one may be under way.
        self._waiting: dict[str, deque[_Series]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._minutes: dict[tuple[QueueKey, str], _Minute] = {}
        self._queues: dict[QueueKey, _Queue] = {}
        self._skipped: dict[tuple[str, str], _Series] = {}
        self._forbidden_logged = False

    def on_task_ended(self, task: Task, status: TaskState) -> None:
        """Record a Task's final status, unless it succeeded."""
        if status.phase not in (Phase.FAILED, Phase.CANCELLED):
            return
        self._record_of_task(
            task,
            type_=WARNING if status.phase is Phase.FAILED else NORMAL,
            reason=status.reason or status.phase.value,
            action=_END_TASK,
            note=status.message or f"the Task is {status.phase.value}",
        )

    def on_status_refused(self, task: Task, status: TaskState, why: str) -> None:
        """Record that a Task's status cannot be written, however short."""
        state = f"{status.phase.value} {status.reason}".rstrip()
        self._record_of_task(
            task,
            type_=WARNING,
            reason="StatusRefused",
            action=_WRITE_STATUS,
            note=f"the Task is {state}, and that cannot be recorded: make the object smaller, "
            "correct the policy that refuses its status, or delete it. The API server says: "
            f"{why}",
        )

    def _record_of_task(
        self, task: Task, *, type_: str, reason: str, action: str, note: str
    ) -> None:
        key = (task.namespace, task.spec.queue)
        minute = self._minutes.get((key, action))
        if minute is None:
            minute = self._minutes[key, action] = _Minute()
            loop = asyncio.get_running_loop()
            loop.call_later(MINUTE_SECONDS, self._sum_up, key, action)
        if minute.written >= TASK_EVENTS_PER_MINUTE:
            minute.summed[type_, reason] += 1
            return
        minute.written += 1
        regarding = Regarding(kind="Task", namespace=task.namespace, name=task.name, uid=task.uid)
        self._start_series(
            EventSpec(
                regarding=regarding,
                type=type_,
                reason=reason,
                action=action,
                note=note,
                name=event_name(regarding),
            )
        )

    def on_condition(self, key: QueueKey, uid: str, condition: Condition) -> None:
        """Record a TaskQueue's present condition; call it as often as you like."""
        queue = self._queue_state(key, uid)
        watch = queue.watches.get(condition.type)
        if watch is None:
            watch = queue.watches[condition.type] = _Watch(condition)
        watch.condition = condition
        if condition.status is None:
            return
        wanted = None if condition.status else condition.reason
        if wanted == watch.reported:
            if watch.timer is not None:
                watch.timer.cancel()
                watch.timer = None
        elif watch.timer is None:
            loop = asyncio.get_running_loop()
            watch.timer = loop.call_later(
                SETTLE_SECONDS, self._on_condition_settled, key, queue, watch
            )

    def on_run_skipped(self, regarding: Regarding, reason: str, note: str) -> None:
        """Record that a schedule skipped a run; the same reason again raises the count."""
        series = self._skipped.get((regarding.uid, reason))
        if series is not None:
            self._count_repeat(series)
            return
        self._skipped[regarding.uid, reason] = self._start_series(
            EventSpec(
                regarding=regarding,
                type=WARNING,
                reason=reason,
                action="SkipRun",
                note=note,
                name=event_name(regarding),
            )
        )

    def on_batch_ended(self, regarding: Regarding, phase: Phase, reason: str, note: str) -> None:
        """Record how a TaskBatch ended, unless it succeeded."""
        if phase is Phase.SUCCEEDED:
            return
        self._start_series(
            EventSpec(
                regarding=regarding,
                type=WARNING if phase is Phase.FAILED else NORMAL,
                reason=reason,
                action=_END_TASK,
                note=note,
                name=event_name(regarding),
            )
        )

    def remove_schedule(self, uid: str) -> None:
        """Forget a deleted schedule; Events that wait are still written."""
        for key in [key for key in self._skipped if key[0] == uid]:
            del self._skipped[key]

    def on_served_elsewhere(self, key: QueueKey, uid: str, installation: str) -> None:
        """Record that another installation serves a TaskQueue: only it writes the status."""
        regarding = _task_queue(key, uid)
        self._start_series(
            EventSpec(
                regarding=regarding,
                type=WARNING,
                reason="ServedElsewhere",
                action="Claim",
                note=f"installation {installation} of the operator serves this TaskQueue, so this "
                "one leaves it and its Tasks alone: take the namespace from one of the two, and "
                "clear status.installation if it is that one",
                name=event_name(regarding),
            )
        )

    def remove_queue(self, key: QueueKey) -> None:
        """Stop watching a deleted TaskQueue; Events that wait are still written."""
        queue = self._queues.pop(key, None)
        for watch in queue.watches.values() if queue else ():
            if watch.timer is not None:
                watch.timer.cancel()

    async def run(self) -> None:
        """Write Events until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            try:
                for namespace in self._waiting:
                    self._group.create_task(self._write_all(namespace), name="Events")
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def _write_all(self, namespace: str) -> None:
        """Write the Events of a namespace, one after the other, until there are no more."""
        waiting = self._waiting[namespace]
        while waiting:
            series = waiting.popleft()
            try:
                await self._write(series)
            except Exception as problem:  # a failed Event must not end anything
                log.error("event.write_failed", exc_info=problem, event_name=series.spec.name)
        del self._waiting[namespace]

    # Conditions.

    def _queue_state(self, key: QueueKey, uid: str) -> _Queue:
        queue = self._queues.get(key)
        if queue is None or queue.uid != uid:
            self.remove_queue(key)
            queue = self._queues[key] = _Queue(uid)
        return queue

    def _on_condition_settled(self, key: QueueKey, queue: _Queue, watch: _Watch) -> None:
        watch.timer = None
        condition = watch.condition
        if condition.status is None:
            return  # neither trouble nor its end
        watch.reported = None if condition.status else condition.reason
        type_ = NORMAL if condition.status else WARNING
        series = queue.series.get((condition.type, type_, condition.reason))
        if series is not None:
            self._count_repeat(series)
            return
        regarding = _task_queue(key, queue.uid)
        queue.series[condition.type, type_, condition.reason] = self._start_series(
            EventSpec(
                regarding=regarding,
                type=type_,
                reason=condition.reason,
                action="Reconcile",
                note=condition.message or f"{condition.type} is {condition.reason}",
                name=event_name(regarding),
            )
        )

    def _sum_up(self, key: QueueKey, action: str) -> None:
        summed = self._minutes.pop((key, action)).summed
        if not summed:
            return
        queue = self._queues.get(key)
        regarding = _task_queue(key, queue.uid if queue else "")
        failed = any(type_ == WARNING for type_, _ in summed)
        reason, what = "MoreTasksFailed" if failed else "MoreTasksCancelled", "ended"
        if action == _WRITE_STATUS:
            reason, what = "MoreStatusesRefused", "could not be recorded"
        reasons = [f"{why} {number}" for (_, why), number in summed.most_common()]
        named = ", ".join(reasons[:_REASONS_NAMED])
        if len(reasons) > _REASONS_NAMED:
            named += f" and {len(reasons) - _REASONS_NAMED} other reasons"
        self._start_series(
            EventSpec(
                regarding=regarding,
                type=WARNING if failed else NORMAL,
                reason=reason,
                action=action,
                note=f"{sum(summed.values())} more Tasks {what} within a minute: {named}. List "
                f"them with kubectl get tasks.{GROUP} --field-selector spec.queue={key[1]}",
                name=event_name(regarding),
            )
        )

    # Writing.

    def _start_series(self, spec: EventSpec) -> _Series:
        series = _Series(spec, self._clock())
        self._enqueue(series)
        return series

    def _count_repeat(self, series: _Series) -> None:
        series.count += 1
        series.at = self._clock()
        if not series.queued:
            self._enqueue(series)

    def _enqueue(self, series: _Series) -> None:
        namespace = series.spec.regarding.namespace
        waiting = self._waiting.get(namespace)
        namespaces = len(self._waiting) + (waiting is None)
        series.queued = len(waiting or ()) < math.ceil(self._waiting_limit / namespaces)
        if not series.queued:
            EVENTS_DROPPED.labels("full").inc()
        elif waiting is not None:
            waiting.append(series)
        else:
            self._waiting[namespace] = deque([series])
            if self._group is not None:
                self._group.create_task(self._write_all(namespace), name="Events")

    async def _write(self, series: _Series) -> None:
        try:
            written = await self._write_with_retries(series)
        finally:
            series.queued = False
        if written is not None and series.count > written:
            self._enqueue(series)  # repeated meanwhile

    async def _write_with_retries(self, series: _Series) -> int | None:
        """Write an Event, and return the count it has now; None: dropped."""
        backoff = Backoff(first_seconds=_FIRST_PAUSE_SECONDS)
        for left in reversed(range(TRIES)):
            try:
                written = await self._send(series)
            except ApiError as problem:
                if left and problem.transient and problem.status != 403:
                    await asyncio.sleep(problem.retry_after or backoff.next_delay())
                    continue
                self._on_rejected(problem)
                return None
            self._forbidden_logged = False
            return written
        return None

    async def _send(self, series: _Series) -> int:
        if series.created:
            count = series.count
            try:
                await self._writer.repeat(series.spec, count=count, at=series.at)
                return count
            except ApiError as problem:
                if problem.status != 404:
                    raise
            # Removed for its age: start over with a new one.
            series.spec = replace(series.spec, name=event_name(series.spec.regarding))
            series.created, series.count = False, 1
        await self._writer.create(series.spec, at=series.at)
        series.created = True
        return 1

    def _on_rejected(self, problem: ApiError) -> None:
        EVENTS_DROPPED.labels("refused").inc()
        if problem.status == 404 or "being terminated" in problem.message:
            return  # the namespace is being deleted
        if problem.status == 403:
            if self._forbidden_logged:
                return
            self._forbidden_logged = True
        log.warning(
            "event.rejected",
            error=str(problem),
            hint="give the operator's role create and patch on events of events.k8s.io"
            if problem.status == 403
            else None,
        )


def _task_queue(key: QueueKey, uid: str) -> Regarding:
    return Regarding(kind="TaskQueue", namespace=key[0], name=key[1], uid=uid)
