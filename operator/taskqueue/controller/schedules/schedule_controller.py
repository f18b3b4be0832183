"""All schedules, from the informer that shows them to the Tasks they create.

Contract:

* A run is recorded in the status after its Task was created, and its name follows from its time. So
  a run that a former leader created and did not record is created again in vain (409).
* Each schedule is served by one worker at a time, a few steps at once; what fails waits for its own
  back-off, and is tried again by workers that serve nothing else. So a schedule whose Tasks cannot
  be created, or whose requests hang until they time out, does not hold up the others.
* Of a schedule little is kept: its template only while it is small.
* Times are of the wall clock, which is looked at twice a minute at least.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from taskqueue.controller.metrics import SCHEDULE_LATENESS, SCHEDULE_RUNS
from taskqueue.controller.schedules import decisions
from taskqueue.controller.schedules.decisions import RunRequest
from taskqueue.controller.schedules.report import (
    Problem,
    changed_transitions,
    conditions_of,
    describe,
    read_calendar,
)
from taskqueue.controller.schedules.run_creator import Gone, RunCreator
from taskqueue.controller.schedules.run_index import RunIndex
from taskqueue.controller.schedules.tracked_schedule import TrackedSchedule
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.informer import Key, identity
from taskqueue.kubernetes.schedule_codec import (
    read_schedule,
    read_state,
    read_transitions,
    schedule_path,
    status_body,
    status_patch,
    template_of,
)
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteRefused, WriteResult
from taskqueue.logs import EventLog
from taskqueue.model.schedule import Schedule, ScheduleState, SkippedRun
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Schedules served at once: those that have not failed, and those that have.
WORKERS, RETRY_WORKERS = 12, 4
#: Runs created for one schedule before it is the turn of others.
_RUNS_A_TURN = 10
#: A template up to this size is kept, in bytes.
_TEMPLATE_BYTES = 4096
#: Times that a status has.
_NEXT_TIMES = 3
#: A shorter sleep would spin; a longer one would miss that the clock was set.
_SHORTEST_SLEEP, _LONGEST_SLEEP = 0.01, 30.0

OnSkipped = Callable[[Schedule, str, str], None]


class ScheduleController:
    """Serves all schedules while `run` is running; handles the events of their informer.

    Args:
        client: for the API server, with a short time-out.
        updater: writes statuses.
        clock: wall time in seconds.
        on_skipped: called with a schedule, a reason and a message when runs were skipped.
        on_deleted: called with the uid of a schedule that was deleted.

    Attributes:
        runs: the Tasks of all schedules; the handler of an informer of its own.
    """

    def __init__(
        self,
        client: ApiClient,
        updater: StatusUpdater,
        *,
        clock: Clock,
        on_skipped: OnSkipped = lambda *_: None,
        on_deleted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._creator = RunCreator(client)
        self._updater = updater
        self._clock = clock
        self._on_skipped = on_skipped
        self._on_deleted = on_deleted
        self._tracked: dict[str, TrackedSchedule] = {}
        self._ready: deque[TrackedSchedule] = deque()
        self._retries: deque[TrackedSchedule] = deque()
        self._queued: set[str] = set()
        self._queue_changed = asyncio.Event()
        #: (when, tie-breaker, uid). Only an entry whose time is the schedule's `wake` counts.
        self._heap: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._heap_wake = asyncio.Event()
        self.runs = RunIndex(self._on_runs_changed)

    def __len__(self) -> int:
        return len(self._tracked)

    def is_unrecorded(self, key: Key) -> bool:
        """Return whether a Task is a run that a later leader would not know of without it."""
        found = self.runs.find(key)
        if found is None:
            return False
        owner, run = found
        tracked = self._tracked.get(owner)
        if tracked is None:
            return False
        return not tracked.is_recorded(run)

    async def run(self, *, synced: asyncio.Event | None = None) -> None:
        """Serve until cancelled.

        Args:
            synced: set once all schedules and their runs that existed at the start are known.
        """
        if synced is not None:
            await synced.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_clock(), name="schedules: clock")
            for number in range(WORKERS):
                group.create_task(self._work(self._ready), name=f"schedules: {number}")
            for number in range(RETRY_WORKERS):
                group.create_task(self._work(self._retries), name=f"schedules: retry {number}")

    # The informer.

    def on_upserted(self, raw: dict[str, Any]) -> None:
        """Take a schedule that is new or changed."""
        try:
            schedule = read_schedule(raw)
            template = template_of(raw)
        except (ValueError, KeyError, TypeError) as error:  # one bad object stops no other
            self.on_unreadable(raw, str(error))
            return
        tracked = self._tracked.get(schedule.uid)
        if tracked is None:
            tracked = self._tracked[schedule.uid] = self._new(schedule, raw)
        elif tracked.schedule == schedule:
            return  # our own write of its status, come back
        elif tracked.schedule.timing != schedule.timing:
            tracked.state = decisions.on_timing_changed(schedule, tracked.state, now=self._clock())
        tracked.schedule, tracked.failing = schedule, None  # what failed may be corrected
        tracked.template = template if len(template) <= _TEMPLATE_BYTES else None
        self._read_calendar(tracked)
        self._enqueue(tracked)

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        """Leave out a schedule that cannot be read: the API server has let it pass all the same."""
        (namespace, name), uid = identity(raw)
        log.error("schedule.unreadable", namespace=namespace, schedule=name, error=problem)
        self._tracked.pop(uid, None)

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Forget a schedule; its Tasks are deleted with it, by Kubernetes."""
        if self._tracked.pop(uid, None) is not None:
            self._on_deleted(uid)
            log.info("schedule.deleted", namespace=key[0], schedule=key[1])

    def _on_runs_changed(self, schedule: str) -> None:
        tracked = self._tracked.get(schedule)
        if tracked is not None:
            self._enqueue(tracked)

    def _new(self, schedule: Schedule, raw: dict[str, Any]) -> TrackedSchedule:
        try:
            state, transitions = read_state(raw), read_transitions(raw)
        except ValidationError as error:  # of another version
            log.warning("schedule.status_unreadable", schedule=schedule.path, error=str(error))
            state, transitions = ScheduleState(decided=int(self._clock() // 60)), {}
        observed = (raw.get("status") or {}).get("observedGeneration", -1)
        if state.decided is not None and observed != schedule.generation:
            # It was changed while no operator looked: what it says now is of no past time.
            state = decisions.on_timing_changed(schedule, state, now=self._clock())
        log.info("schedule.added", namespace=schedule.namespace, schedule=schedule.name)
        return TrackedSchedule(schedule, state, state, transitions)

    def _read_calendar(self, tracked: TrackedSchedule) -> None:
        found = read_calendar(tracked.schedule)
        if isinstance(found, Problem):
            tracked.calendar, tracked.invalid, tracked.description = None, found, ""
            log.warning(
                "schedule.invalid",
                namespace=tracked.schedule.namespace,
                schedule=tracked.schedule.name,
                error=found.message,
            )
        else:
            tracked.calendar, tracked.invalid = found, None
            tracked.description = describe(tracked.schedule, found)

    # Queues.

    def _enqueue(self, tracked: TrackedSchedule) -> None:
        """Have a schedule served soon, unless it waits for its back-off."""
        if tracked.busy:
            tracked.again = True
        elif tracked.failing is None:
            self._append(tracked)

    def _append(self, tracked: TrackedSchedule) -> None:
        uid = tracked.schedule.uid
        if uid not in self._queued:
            self._queued.add(uid)
            (self._retries if tracked.risky else self._ready).append(tracked)
            self._queue_changed.set()

    def _wake_at(self, tracked: TrackedSchedule, at: float | None) -> None:
        if at == tracked.wake:
            return
        tracked.wake = at
        if at is not None:
            heapq.heappush(self._heap, (at, next(self._numbers), tracked.schedule.uid))
            self._heap_wake.set()

    async def _watch_clock(self) -> None:
        while True:
            sleep = _LONGEST_SLEEP
            while self._heap:
                at, _, uid = self._heap[0]
                tracked = self._tracked.get(uid)
                if tracked is not None and tracked.wake == at:
                    left = at - self._clock()
                    if left > 0:
                        sleep = min(max(left, _SHORTEST_SLEEP), sleep)
                        break
                    tracked.wake = None
                    if tracked.busy:
                        tracked.again = True
                    else:
                        self._append(tracked)
                heapq.heappop(self._heap)
            self._heap_wake.clear()
            try:
                async with asyncio.timeout(sleep):
                    await self._heap_wake.wait()
            except TimeoutError:
                pass

    async def _work(self, queue: deque[TrackedSchedule]) -> None:
        while True:
            while not queue:
                self._queue_changed.clear()
                await self._queue_changed.wait()
            tracked = queue.popleft()
            self._queued.discard(tracked.schedule.uid)
            if self._is_served(tracked):
                await self._serve(tracked)

    def _is_served(self, tracked: TrackedSchedule) -> bool:
        return self._tracked.get(tracked.schedule.uid) is tracked

    # Serving.

    async def _serve(self, tracked: TrackedSchedule) -> None:
        """Do what is due for a schedule, and say when it is to be looked at again."""
        tracked.busy, tracked.again = True, False
        wake: float | None = None
        try:
            wake = await self._do_what_is_due(tracked)
            await self._delete_surplus(tracked)
        except ApiError as error:
            wake = self._on_failed(tracked, str(error), error.retry_after)
        except Exception as error:  # whatever one schedule causes, the others are served
            log.error("schedule.crashed", exc_info=error, schedule=tracked.schedule.path)
            wake = self._on_failed(tracked, repr(error), None)
        tracked.busy = False
        if not self._is_served(tracked):
            return
        self._write_status(tracked)
        self._wake_at(tracked, wake)
        if tracked.again:
            self._enqueue(tracked)

    def _on_failed(
        self, tracked: TrackedSchedule, problem: str, retry_after: float | None
    ) -> float:
        tracked.risky = True
        tracked.failing = Problem(
            "CreateFailed", f"what is due cannot be done, and is tried again: {problem}"
        )
        wait = max(tracked.backoff.next_delay(), min(retry_after or 0.0, _LONGEST_SLEEP))
        schedule = tracked.schedule
        log.warning(
            "schedule.failed",
            namespace=schedule.namespace,
            schedule=schedule.name,
            error=problem,
            wait_seconds=round(wait, 2),
        )
        return self._clock() + wait

    async def _do_what_is_due(self, tracked: TrackedSchedule) -> float | None:
        """Create the runs that are due, a few; return when to look again."""
        for _ in range(_RUNS_A_TURN):
            if tracked.calendar is None:
                return None
            decision = decisions.decide(
                tracked.schedule,
                tracked.calendar,
                tracked.state,
                self.runs.of(tracked.schedule.uid),
                now=self._clock(),
                paced_until=tracked.paced_until,
            )
            tracked.state = decision.state
            self._report_skipped(tracked, decision.skipped)
            if decision.create is None:
                self._on_succeeded(tracked)
                return decision.wake
            if not await self._create(tracked, decision.create):
                return None
        tracked.again = True
        self._on_succeeded(tracked)
        return None

    def _on_succeeded(self, tracked: TrackedSchedule) -> None:
        tracked.failing = None
        tracked.backoff.reset()

    async def _create(self, tracked: TrackedSchedule, request: RunRequest) -> bool:
        """Create a run; return False if there is no such schedule any more."""
        schedule = tracked.schedule
        for run in request.replaces:
            await self._creator.cancel(schedule, run)
            self.runs.put(schedule.uid, schedule.namespace, replace(run, cancelling=True))
        found = await self._creator.create(schedule, request, tracked.template)
        if isinstance(found, Gone) or not self._is_served(tracked):
            return False
        now, tracked.risky = self._clock(), False
        if isinstance(found, Problem):
            tracked.state, skipped = decisions.on_refused(
                tracked.state, request, found.reason, found.message, now=now
            )
            self._report_skipped(tracked, [skipped])
            return True
        if found.name not in self.runs.of(schedule.uid):
            self.runs.put(schedule.uid, schedule.namespace, found)
        tracked.state = decisions.on_created(schedule, tracked.state, request, now=now)
        SCHEDULE_RUNS.labels("created").inc()
        if request.backfill:
            tracked.paced_until = now + decisions.pace(schedule, request.backfill)
        else:
            SCHEDULE_LATENESS.observe(tracked.state.lateness or 0.0)
        log.info(
            "run.created", namespace=schedule.namespace, schedule=schedule.name, task=found.name
        )
        return True

    async def _delete_surplus(self, tracked: TrackedSchedule) -> None:
        """Delete the runs beyond the history limits; `written` says whose end is recorded."""
        schedule, runs = tracked.schedule, self.runs.of(tracked.schedule.uid)
        for run in decisions.to_delete(schedule, tracked.written, runs)[:_RUNS_A_TURN]:
            try:
                await self._creator.delete(schedule, run)
            except ApiError as error:  # next time
                log.warning("run.not_deleted", schedule=schedule.path, error=str(error))
                return
            self.runs.on_deleted((schedule.namespace, run.name), run.uid)

    # What is said of it.

    def _report_skipped(self, tracked: TrackedSchedule, skipped: Iterable[SkippedRun]) -> None:
        latest: dict[str, tuple[SkippedRun, int]] = {}
        for one in skipped:
            latest[one.reason] = one, latest.get(one.reason, (one, 0))[1] + 1
        schedule = tracked.schedule
        for reason, (one, count) in latest.items():
            SCHEDULE_RUNS.labels("skipped").inc(count)
            more = f"; so were {count - 1} before it" if count > 1 else ""
            self._on_skipped(schedule, reason, one.message + more)
            log.info(
                "run.skipped",
                namespace=schedule.namespace,
                schedule=schedule.name,
                reason=reason,
                count=count,
            )

    def _write_status(self, tracked: TrackedSchedule) -> None:
        """Put the status on its way, if it has changed."""
        schedule, state, calendar = tracked.schedule, tracked.state, tracked.calendar
        upcoming: list[int] = []
        if calendar is not None and not state.paused:
            upcoming = decisions.next_times(schedule, calendar, state, count=_NEXT_TIMES)
        conditions = conditions_of(
            schedule,
            state,
            invalid=tracked.invalid,
            failing=tracked.failing,
            has_next=bool(upcoming),
        )
        tracked.transitions = changed_transitions(tracked.transitions, conditions, at=self._clock())
        runs = self.runs.of(schedule.uid)
        body = status_body(
            schedule,
            state,
            description=tracked.description,
            next_minutes=upcoming,
            active=sum(run.active for run in runs.values()),
            conditions=conditions,
            transitions=tracked.transitions,
        )
        if body == tracked.body:
            if body == tracked.written_body:
                tracked.written = state
            return
        tracked.body = body

        def on_result(result: WriteResult) -> None:
            self._on_written(tracked, state, body, result)

        path = f"{schedule_path(schedule.namespace, schedule.name)}/status"
        self._updater.put(path, status_patch(schedule, body), on_result)

    def _on_written(
        self,
        tracked: TrackedSchedule,
        state: ScheduleState,
        body: dict[str, Any],
        result: WriteResult,
    ) -> None:
        if isinstance(result, WriteRefused):
            if self._is_served(tracked) and result.status != 404:
                log.error(
                    "schedule.status_refused",
                    schedule=tracked.schedule.path,
                    error=result.message,
                )
            return
        tracked.written, tracked.written_body = state, body
        runs = self.runs.of(tracked.schedule.uid)
        if decisions.to_delete(tracked.schedule, state, runs):
            self._enqueue(tracked)
