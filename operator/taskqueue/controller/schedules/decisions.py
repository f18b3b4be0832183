"""What a schedule does next: which runs are due, late, missed or skipped, and why.

`decide` is asked again after each step. It returns at most one run to create; nothing of a run is
recorded before the API server has it (`on_created`) or will never take it (`on_refused`). So a run
that cannot be created stays due, until it is missed or too late, and whoever takes over creates it
under the same name.

The rules, in their order:

* While it is suspended or paused, nothing is created, and what would be due is no more.
* What is excluded, or later than the starting deadline, is skipped.
* A run that is not created within `ON_TIME_SECONDS` is missed: the policy for missed runs says
  whether it is made up for.
* While another run is active, the concurrency policy decides.
* A backfill goes on when nothing else is due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from taskqueue.controller.schedules.calendar import Calendar
from taskqueue.limits import BUFFERED_RUNS, MISSED_RUNS
from taskqueue.model.schedule import (
    Backfill,
    BackfillState,
    ConcurrencyPolicy,
    MissedPolicy,
    Schedule,
    ScheduledRun,
    ScheduleState,
    SkippedRun,
)
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339

#: A run that is created later than this is one that was missed. A takeover takes less.
ON_TIME_SECONDS = 60
#: Times of a backfill that are passed over in one step, because their runs exist.
_BACKFILL_STEPS = 500
#: Backfills whose end is remembered, beyond those in the spec.
_BACKFILLS_KEPT = 64

Runs = Mapping[str, ScheduledRun]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run to create.

    Attributes:
        minute: its time.
        replaces: active runs that are cancelled first.
        backfill: name of the backfill it is part of; "": it is due by the schedule.
    """

    minute: int
    replaces: tuple[ScheduledRun, ...] = ()
    backfill: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a schedule does next.

    Attributes:
        state: as it is now.
        create: the run to create; None: there is none.
        skipped: runs that were skipped since.
        wake: when to ask again, in seconds since the epoch; None: when something has changed.
    """

    state: ScheduleState
    create: RunRequest | None = None
    skipped: tuple[SkippedRun, ...] = ()
    wake: float | None = None


def pause_reason(schedule: Schedule, state: ScheduleState) -> str:
    """Return why a schedule creates nothing, as the reason of a condition; "": it does."""
    if schedule.suspend:
        return "Suspended"
    if schedule.pause_reason:
        return "PausedByHand"
    return "" if state.auto_paused is None else "TooManyFailures"


def decide(
    schedule: Schedule,
    calendar: Calendar,
    state: ScheduleState,
    runs: Runs,
    *,
    now: float,
    paced_until: float = 0.0,
) -> Decision:
    """Return what to do next.

    Args:
        schedule: the object.
        calendar: its times.
        state: what is true of it.
        runs: its Tasks by their names.
        now: in seconds since the epoch.
        paced_until: a backfill creates nothing before.
    """
    state = _with_ends(schedule, state, runs.values(), now=now)
    until = _due_until(schedule, now)
    if pause_reason(schedule, state):
        return Decision(replace(state, paused=True, buffered=()))
    if state.paused or state.decided is None:
        first = until if state.paused else int(schedule.created // 60)
        state = replace(state, decided=max(first, state.decided or 0), paused=False)
    step = _Step(schedule, calendar, state, runs, now)
    create = step.buffered() or step.due(until)
    if create is None:
        create = step.backfill(until, paced_until)
    wakes = [step.wake] if step.wake is not None else []
    upcoming = next_times(schedule, calendar, step.state, count=1)
    wakes += [minute * 60 + schedule.jitter for minute in upcoming]
    return Decision(step.state, create, tuple(step.skipped), min(wakes, default=None))


def on_timing_changed(schedule: Schedule, state: ScheduleState, *, now: float) -> ScheduleState:
    """Return the state after the schedule was changed: what it says now is of no past time."""
    return replace(state, decided=max(_due_until(schedule, now), state.decided or 0))


def on_created(
    schedule: Schedule, state: ScheduleState, request: RunRequest, *, now: float
) -> ScheduleState:
    """Return the state after a run was created."""
    if request.backfill:
        return _backfilled(state, request, created=1)
    lateness = max(now - request.minute * 60 - schedule.jitter, 0.0)
    return replace(_created(state, request.minute), lateness=lateness, skipped=None)


def on_refused(
    state: ScheduleState, request: RunRequest, reason: str, message: str, *, now: float
) -> tuple[ScheduleState, SkippedRun]:
    """Return the state after a run was refused for good, and what is said of it."""
    skipped = SkippedRun(request.minute, reason, message, now)
    if request.backfill:
        state = _backfilled(state, request, created=0)
    return replace(_decided(state, request.minute), skipped=skipped), skipped


def pace(schedule: Schedule, backfill: str) -> float:
    """Return how long a backfill waits after it has created a run, in seconds."""
    rates = (one.max_per_minute for one in schedule.backfills if one.name == backfill)
    return 60.0 / next(rates, 60)


def next_times(
    schedule: Schedule, calendar: Calendar, state: ScheduleState, *, count: int
) -> list[int]:
    """Return the next minutes that are due after what is decided."""
    minute = state.decided or 0
    if schedule.start is not None:
        minute = max(minute, schedule.start - 1)
    times: list[int] = []
    while len(times) < count:
        found = calendar.next_after(minute)
        if found is None or (schedule.end is not None and found >= schedule.end):
            break
        times.append(found)
        minute = found
    return times


def to_delete(schedule: Schedule, state: ScheduleState, runs: Runs) -> list[ScheduledRun]:
    """Return the runs beyond the history limits whose end is recorded, oldest first."""
    recorded = state.last_finish or 0.0
    ended = sorted(
        (run for run in runs.values() if run.finished is not None and run.finished <= recorded),
        key=lambda run: (run.finished or 0.0, run.minute),
    )
    good = [run for run in ended if run.phase is Phase.SUCCEEDED]
    bad = [run for run in ended if run.phase is not Phase.SUCCEEDED]
    surplus = good[: max(len(good) - schedule.successful_history_limit, 0)]
    return surplus + bad[: max(len(bad) - schedule.failed_history_limit, 0)]


def _due_until(schedule: Schedule, now: float) -> int:
    """Return the last minute whose runs are due by now."""
    return int((now - schedule.jitter) // 60)


def _decided(state: ScheduleState, minute: int) -> ScheduleState:
    """Return the state with a run decided, be it due or buffered."""
    return replace(
        state,
        decided=max(minute, state.decided or 0),
        buffered=tuple(one for one in state.buffered if one != minute),
    )


def _created(state: ScheduleState, minute: int) -> ScheduleState:
    return replace(_decided(state, minute), last=max(minute, state.last or 0))


def _with_ends(
    schedule: Schedule, state: ScheduleState, runs: Iterable[ScheduledRun], *, now: float
) -> ScheduleState:
    """Return the state with the ends counted that came since, and what follows from them."""
    resumed = schedule.resumed or 0.0
    if state.auto_paused is not None and (
        resumed > state.auto_paused or schedule.pause_after_failures is None
    ):
        state = replace(state, auto_paused=None, failures=0)
    counted = state.last_finish or 0.0
    ended = [run for run in runs if run.finished is not None and run.finished > counted]
    for run in sorted(ended, key=lambda run: run.finished or 0.0):
        state = replace(state, last_finish=run.finished)
        if run.phase is Phase.SUCCEEDED:
            state = replace(state, failures=0, last_success=run.finished)
        elif run.phase is Phase.FAILED and (run.finished or 0.0) > resumed:
            state = replace(state, failures=state.failures + 1)
    limit = schedule.pause_after_failures
    if limit is not None and state.failures >= limit and state.auto_paused is None:
        state = replace(state, auto_paused=now)
    return state


class _Step:
    """One look at a schedule: what is skipped, and what is created at last."""

    def __init__(
        self,
        schedule: Schedule,
        calendar: Calendar,
        state: ScheduleState,
        runs: Runs,
        now: float,
    ) -> None:
        self._schedule = schedule
        self._calendar = calendar
        self._runs = runs
        self._now = now
        self._active = tuple(run for run in runs.values() if run.active)
        self.state = state
        self.skipped: list[SkippedRun] = []
        self.wake: float | None = None

    def buffered(self) -> RunRequest | None:
        """Return the buffered run whose turn has come."""
        for minute in self.state.buffered:
            if self._schedule.run_name(minute) in self._runs:
                self.state = _decided(self.state, minute)
            elif self._is_too_late(minute):
                self._skip_late(minute)
            elif not self._active or not self._is_buffering:
                return self._overlapping(minute)
        return None

    def due(self, until: int) -> RunRequest | None:
        """Return the first run that is due, after skipping those before it."""
        schedule, decided = self._schedule, self.state.decided or 0
        if schedule.start is not None:
            decided = max(decided, schedule.start - 1)
        if schedule.end is not None:
            until = min(until, schedule.end - 1)
        if decided >= until:
            return None
        minutes = self._calendar.latest(decided, until, MISSED_RUNS)
        wanted = self._made_up_for(minutes)
        for minute in minutes:
            if schedule.run_name(minute) in self._runs:  # by this operator, or one before it
                self.state = _created(self.state, minute)
            elif self._calendar.window_of(minute) is not None:
                self._skip(minute, "Excluded", "is in a time that spec.exclude leaves out")
            elif self._is_too_late(minute):
                self._skip_late(minute)
            elif minute not in wanted:
                self._skip_missed(minute)
            elif (request := self._overlapping(minute)) is not None:
                return request
        return None

    def backfill(self, until: int, paced_until: float) -> RunRequest | None:
        """Return the next run of the first backfill that is not done."""
        names = {one.name for one in self._schedule.backfills}
        for backfill in self._schedule.backfills:
            state = _state_of(self.state, backfill, until)
            if state.completed is not None:
                continue
            if backfill.one_at_a_time and (self._active or self.state.buffered):
                return None
            if paced_until > self._now:
                self.wake = paced_until
                return None
            minute, state = self._next_of_backfill(state)
            is_done = minute is None and state.decided >= state.until
            if is_done:
                state = replace(state, completed=self._now)
            self.state = _with_backfill(self.state, state, keep=names)
            if minute is not None:
                return RunRequest(minute, backfill=backfill.name)
            if not is_done:
                self.wake = self._now  # go on at once, after other schedules
                return None
        return None

    def _next_of_backfill(self, state: BackfillState) -> tuple[int | None, BackfillState]:
        for _ in range(_BACKFILL_STEPS):
            minute = self._calendar.next_after(state.decided)
            if minute is None or minute > state.until:
                return None, replace(state, decided=max(state.until, state.decided))
            if self._schedule.run_name(minute) not in self._runs:
                return minute, state
            state = replace(state, decided=minute)
        return None, state

    # The concurrency policy.

    @property
    def _is_buffering(self) -> bool:
        policy = self._schedule.concurrency_policy
        return policy in (ConcurrencyPolicy.BUFFER_ONE, ConcurrencyPolicy.BUFFER_ALL)

    def _overlapping(self, minute: int) -> RunRequest | None:
        """Return a run to create now; None: it is skipped, or waits for its turn."""
        policy, state = self._schedule.concurrency_policy, self.state
        others = tuple(one for one in state.buffered if one != minute)
        if not self._active and not (self._is_buffering and others):
            return RunRequest(minute)
        if policy is ConcurrencyPolicy.ALLOW:
            return RunRequest(minute)
        if policy is ConcurrencyPolicy.REPLACE:
            return RunRequest(minute, tuple(run for run in self._active if not run.cancelling))
        if policy is ConcurrencyPolicy.FORBID:
            names = ", ".join(sorted(run.name for run in self._active)[:3])
            self._skip(
                minute,
                "ConcurrencyForbidden",
                f"is due while {names} is active, and spec.concurrencyPolicy is Forbid",
            )
            return None
        room = 1 if policy is ConcurrencyPolicy.BUFFER_ONE else BUFFERED_RUNS
        if minute in state.buffered:
            # Its turn: those before it in the buffer are of the past.
            return None if self._active else RunRequest(minute)
        if len(state.buffered) >= room:
            self._skip(
                minute,
                "BufferFull",
                f"is due while a run is active and {room} other waits"
                if room == 1
                else f"is due while a run is active and {room} others wait",
            )
            return None
        self.state = replace(
            state, decided=max(minute, state.decided or 0), buffered=(*state.buffered, minute)
        )
        return None

    # What is skipped.

    def _made_up_for(self, minutes: Collection[int]) -> frozenset[int]:
        """Return which runs are created, be they on time or missed."""
        schedule = self._schedule
        possible = [
            minute
            for minute in minutes
            if self._calendar.window_of(minute) is None and not self._is_too_late(minute)
        ]
        missed = [one for one in possible if self._lateness(one) > ON_TIME_SECONDS]
        on_time = possible[len(missed) :]
        if schedule.missed_policy is MissedPolicy.ALL:
            missed = missed[-schedule.missed_limit :]
        elif schedule.missed_policy is MissedPolicy.LAST and not on_time:
            missed = missed[-1:]
        else:
            missed = []
        return frozenset(missed + on_time)

    def _lateness(self, minute: int) -> float:
        return self._now - minute * 60 - self._schedule.jitter

    def _is_too_late(self, minute: int) -> bool:
        deadline = self._schedule.starting_deadline_seconds
        return deadline is not None and self._lateness(minute) > deadline

    def _skip_late(self, minute: int) -> None:
        self._skip(
            minute,
            "DeadlineExceeded",
            "could not start within spec.startingDeadlineSeconds, "
            f"{self._schedule.starting_deadline_seconds} s",
            missed=1,
        )

    def _skip_missed(self, minute: int) -> None:
        policy = self._schedule.missed_policy.value
        self._skip(
            minute,
            "Missed",
            f"was not created in time, and is not made up for: spec.missedRuns.policy is {policy}",
            missed=1,
        )

    def _skip(self, minute: int, reason: str, what: str, *, missed: int = 0) -> None:
        message = f"the run of {to_rfc3339(minute * 60, 'seconds')} {what}"
        skipped = SkippedRun(minute, reason, message, self._now)
        self.skipped.append(skipped)
        state = _decided(self.state, minute)
        self.state = replace(state, skipped=skipped, missed=state.missed + missed)


# Backfills.


def _state_of(state: ScheduleState, backfill: Backfill, until: int) -> BackfillState:
    """Return how far a backfill is; one that begins ends with what is past by now."""
    for one in state.backfills:
        if one.name == backfill.name:
            return one
    return BackfillState(backfill.name, backfill.start - 1, min(backfill.end - 1, until))


def _with_backfill(
    state: ScheduleState, backfill: BackfillState, *, keep: Collection[str]
) -> ScheduleState:
    """Return the state with this of a backfill; of those no longer in the spec the oldest go."""
    kept = {one.name: one for one in state.backfills} | {backfill.name: backfill}
    if len(kept) > _BACKFILLS_KEPT:
        del kept[next(name for name in kept if name not in keep)]
    return replace(state, backfills=tuple(kept.values()))


def _backfilled(state: ScheduleState, request: RunRequest, *, created: int) -> ScheduleState:
    backfills = tuple(
        replace(one, decided=request.minute, created=one.created + created)
        if one.name == request.backfill
        else one
        for one in state.backfills
    )
    return replace(state, backfills=backfills)
