"""What a schedule does next: due, late, missed, skipped, buffered, paused, backfilled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.schedules import decisions
from taskqueue.controller.schedules.calendar import Calendar, Window, load_zone, merged
from taskqueue.controller.schedules.cron import parse_cron
from taskqueue.controller.schedules.decisions import RunRequest, decide
from taskqueue.limits import BUFFERED_RUNS, MISSED_RUNS
from taskqueue.model.schedule import (
    Backfill,
    ConcurrencyPolicy,
    MissedPolicy,
    Schedule,
    ScheduledRun,
    ScheduleState,
)
from taskqueue.model.task import Phase

#: The minute at which schedules are created here: a full hour.
START = int(datetime(2026, 1, 5, 12, 0, tzinfo=UTC).timestamp()) // 60


def schedule(*crons: str, **spec: Any) -> Schedule:
    return Schedule(
        **{
            "namespace": "shop",
            "name": "s",
            "uid": "u",
            "generation": 1,
            "created": START * 60.0,
            "schedules": crons or ("* * * * *",),
            **spec,
        }
    )


def calendar_of(one: Schedule) -> Calendar:
    excluded = merged([Window(*window) for window in one.excluded])
    return Calendar(tuple(map(parse_cron, one.schedules)), load_zone(one.time_zone), excluded)


@dataclass
class Life:
    """A schedule and its runs, without an API server: what is decided happens."""

    schedule: Schedule
    state: ScheduleState = field(default_factory=ScheduleState)
    runs: dict[str, ScheduledRun] = field(default_factory=dict)
    created: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    wake: float | None = None
    paced_until: float = 0.0

    def look(self, now: float) -> list[int]:
        """Do all that is due; return the minutes of the runs created, from `START` on."""
        before = len(self.created)
        while (request := self.decide(now)) is not None:
            self.on_created(request, now)
        return [minute - START for minute in self.created[before:]]

    def decide(self, now: float) -> RunRequest | None:
        decision = decide(
            self.schedule,
            calendar_of(self.schedule),
            self.state,
            self.runs,
            now=now,
            paced_until=self.paced_until,
        )
        self.state, self.wake = decision.state, decision.wake
        self.skipped += [(one.minute - START, one.reason) for one in decision.skipped]
        return decision.create

    def on_created(self, request: RunRequest, now: float) -> None:
        for run in request.replaces:
            self.end(run.minute - START, Phase.CANCELLED, now)
        name = self.schedule.run_name(request.minute)
        assert name not in self.runs, "created twice"
        self.runs[name] = ScheduledRun(name, f"uid-{name}", request.minute)
        self.state = decisions.on_created(self.schedule, self.state, request, now=now)
        self.created.append(request.minute)
        if request.backfill:
            self.paced_until = now + decisions.pace(self.schedule, request.backfill)

    def end(self, minute: int, phase: Phase, now: float) -> None:
        name = self.schedule.run_name(START + minute)
        self.runs[name] = replace(self.runs[name], phase=phase, finished=now)


def life(*crons: str, **spec: Any) -> Life:
    return Life(schedule(*crons, **spec))


def minute(number: float) -> float:
    """Return the time of a minute after `START`."""
    return (START + number) * 60.0


# When


def test_run_is_created_at_its_minute_and_not_before() -> None:
    one = life()
    assert one.look(minute(0)) == []  # its own creation is no time of it
    assert one.look(minute(1) - 0.001) == []
    assert one.wake == minute(1)
    assert one.look(minute(1)) == [1]
    assert one.look(minute(1) + 30) == []
    assert (one.state.last, one.state.lateness) == (START + 1, 0.0)


def test_runs_are_later_by_the_jitter_and_named_by_their_time() -> None:
    one = life(jitter=90)
    assert one.look(minute(1) + 89.9) == []
    assert one.look(minute(1) + 91.5) == [1]
    assert one.state.lateness == pytest.approx(1.5)
    assert one.schedule.run_name(START + 1) in one.runs


def test_start_and_end_time_bound_the_runs() -> None:
    one = life(start=START + 3, end=START + 5)
    assert one.look(minute(2)) == []
    assert one.wake == minute(3)
    assert one.look(minute(3)) == [3]
    assert one.look(minute(10)) == [4]  # late, and made up for
    assert one.wake is None
    assert one.skipped == []


def test_excluded_runs_are_skipped_and_said_to_be() -> None:
    one = life(excluded=((START + 1, START + 3),))
    assert one.wake is None
    assert one.look(minute(2)) == []
    assert one.skipped == [(1, "Excluded"), (2, "Excluded")]
    assert "spec.exclude" in (one.state.skipped.message if one.state.skipped else "")
    assert one.look(minute(3)) == [3]
    assert one.state.skipped is None
    assert one.state.missed == 0


def test_times_before_a_change_of_the_schedule_do_not_count() -> None:
    one = life("0 15 * * *")
    one.look(minute(0))
    changed = replace(one.schedule, schedules=("0 13 * * *",))
    assert changed.timing != one.schedule.timing
    one.state = decisions.on_timing_changed(changed, one.state, now=minute(120))
    one.schedule = changed
    assert one.look(minute(120)) == []
    assert one.wake == minute(60 + 24 * 60)


# Late and missed


def test_run_of_a_short_absence_is_created_late() -> None:
    one = life(missed_policy=MissedPolicy.NONE)
    one.look(minute(0))
    assert one.look(minute(1) + 20) == [1]
    assert one.state.lateness == 20.0
    assert one.state.missed == 0


@pytest.mark.parametrize(
    ("policy", "created", "missed"),
    [
        (MissedPolicy.NONE, [], 5),
        (MissedPolicy.LAST, [50], 4),
        (MissedPolicy.ALL, [30, 40, 50], 2),
    ],
)
def test_missed_runs_are_made_up_for_by_the_policy(
    policy: MissedPolicy, created: list[int], missed: int
) -> None:
    one = life("*/10 * * * *", missed_policy=policy, missed_limit=3)
    one.look(minute(0))
    assert one.look(minute(55)) == created
    assert one.state.missed == missed
    assert {reason for _, reason in one.skipped} <= {"Missed"}
    assert len(one.skipped) == missed


def test_last_missed_run_is_not_made_up_for_beside_one_that_is_due() -> None:
    one = life()
    one.look(minute(0))
    assert one.look(minute(3) + 5) == [3]
    assert one.skipped == [(1, "Missed"), (2, "Missed")]


def test_no_run_starts_after_the_starting_deadline() -> None:
    one = life("*/10 * * * *", starting_deadline_seconds=1000, missed_policy=MissedPolicy.ALL)
    one.look(minute(0))
    assert one.look(minute(35)) == [20, 30]
    assert one.skipped == [(10, "DeadlineExceeded")]
    assert one.look(minute(40) + 1000.5) == [50]
    assert one.skipped[1:] == [(40, "DeadlineExceeded")]
    assert one.state.missed == 2


def test_a_long_absence_costs_no_more_than_a_short_one() -> None:
    one = life(missed_policy=MissedPolicy.ALL, missed_limit=MISSED_RUNS)
    one.look(minute(0))
    year = 366 * 24 * 60
    assert one.look(minute(year)) == list(range(year - MISSED_RUNS + 1, year + 1))


def test_run_that_exists_is_not_created_again_whatever_the_policy_says() -> None:
    """A former leader created it, and was killed before it recorded that."""
    for policy in ConcurrencyPolicy:
        one = life(concurrency_policy=policy)
        one.look(minute(0))
        recorded = one.state
        one.look(minute(1))
        one.state = recorded
        assert one.look(minute(1) + 10) == []
        assert one.skipped == []
        assert one.state.last == START + 1


# Overlap


def overlapping(policy: ConcurrencyPolicy) -> Life:
    """Return a schedule whose first run goes on for three minutes."""
    one = life(concurrency_policy=policy)
    one.look(minute(0))
    assert one.look(minute(1)) == [1]
    return one


def test_allowed_runs_overlap() -> None:
    one = overlapping(ConcurrencyPolicy.ALLOW)
    assert (one.look(minute(2)), one.look(minute(3))) == ([2], [3])


def test_forbidden_run_is_skipped_and_says_why() -> None:
    one = overlapping(ConcurrencyPolicy.FORBID)
    assert one.look(minute(2)) == []
    assert one.skipped == [(2, "ConcurrencyForbidden")]
    assert one.state.skipped is not None
    assert one.schedule.run_name(START + 1) in one.state.skipped.message
    one.end(1, Phase.SUCCEEDED, minute(2) + 30)
    assert one.look(minute(2) + 31) == []
    assert one.look(minute(3)) == [3]


def test_replacing_run_cancels_the_active_one_once() -> None:
    one = overlapping(ConcurrencyPolicy.REPLACE)
    request = one.decide(minute(2))
    assert request is not None
    assert [run.minute for run in request.replaces] == [START + 1]
    name = one.schedule.run_name(START + 1)
    one.runs[name] = replace(one.runs[name], cancelling=True)
    again = one.decide(minute(2))
    assert again is not None
    assert not again.replaces


def test_one_run_waits_with_buffer_one() -> None:
    one = overlapping(ConcurrencyPolicy.BUFFER_ONE)
    assert (one.look(minute(2)), one.look(minute(3))) == ([], [])
    assert one.skipped == [(3, "BufferFull")]
    assert one.state.buffered == (START + 2,)
    one.end(1, Phase.FAILED, minute(3) + 10)
    assert one.look(minute(3) + 10) == [2]
    assert not one.state.buffered
    assert one.state.lateness == 70.0


def test_all_runs_wait_with_buffer_all_and_run_one_after_the_other() -> None:
    one = overlapping(ConcurrencyPolicy.BUFFER_ALL)
    assert (one.look(minute(2)), one.look(minute(3))) == ([], [])
    for ended in (1, 2):
        one.end(ended, Phase.SUCCEEDED, minute(3) + ended)
        assert one.look(minute(3) + ended) == [ended + 1]
    assert one.skipped == []


def test_so_many_runs_wait_and_no_more() -> None:
    one = overlapping(ConcurrencyPolicy.BUFFER_ALL)
    for number in range(2, BUFFERED_RUNS + 4):
        one.look(minute(number))
    assert len(one.state.buffered) == BUFFERED_RUNS
    assert [reason for _, reason in one.skipped] == ["BufferFull"] * 2


def test_buffered_run_is_skipped_after_the_starting_deadline() -> None:
    one = life(concurrency_policy=ConcurrencyPolicy.BUFFER_ALL, starting_deadline_seconds=90)
    one.look(minute(0))
    one.look(minute(1))
    one.look(minute(2))
    one.end(1, Phase.SUCCEEDED, minute(3.8))
    assert one.look(minute(3.8)) == [3]
    assert one.skipped == [(2, "DeadlineExceeded")]


# Pauses


@pytest.mark.parametrize("how", [{"suspend": True}, {"pause_reason": "a look"}])
def test_paused_schedule_creates_nothing_and_makes_up_for_nothing(how: dict[str, Any]) -> None:
    one = life(missed_policy=MissedPolicy.ALL)
    one.look(minute(0))
    paused, running = replace(one.schedule, **how), one.schedule
    one.schedule = paused
    assert one.look(minute(3)) == []
    assert one.state.paused
    assert one.wake is None
    one.schedule = running
    assert one.look(minute(5) + 30) == []
    assert not one.state.paused
    assert one.look(minute(6)) == [6]
    assert one.skipped == []


def test_pause_drops_what_waits() -> None:
    one = overlapping(ConcurrencyPolicy.BUFFER_ALL)
    one.look(minute(2))
    one.schedule = replace(one.schedule, suspend=True)
    one.look(minute(2) + 1)
    assert not one.state.buffered


def failed(one: Life, number: int) -> None:
    assert one.look(minute(number)) == [number]
    one.end(number, Phase.FAILED, minute(number) + 10)
    one.look(minute(number) + 10)


def test_failures_in_a_row_pause_it_until_it_is_resumed() -> None:
    one = life(pause_after_failures=2)
    one.look(minute(0))
    failed(one, 1)
    one.look(minute(2))
    one.end(2, Phase.SUCCEEDED, minute(2) + 10)
    failed(one, 3)
    assert decisions.pause_reason(one.schedule, one.state) == ""
    failed(one, 4)
    assert decisions.pause_reason(one.schedule, one.state) == "TooManyFailures"
    assert one.look(minute(5)) == []
    one.schedule = replace(one.schedule, resumed=minute(6))
    assert one.look(minute(6)) == []
    assert one.look(minute(7)) == [7]
    assert one.state.failures == 0


def test_cancelled_run_is_no_failure() -> None:
    one = life(pause_after_failures=1)
    one.look(minute(0))
    one.look(minute(1))
    one.end(1, Phase.CANCELLED, minute(1) + 10)
    assert one.look(minute(2)) == [2]


def test_each_end_counts_once_also_for_a_later_leader() -> None:
    one = life(pause_after_failures=3)
    one.look(minute(0))
    failed(one, 1)
    failed(one, 2)
    assert one.state.failures == 2
    one.look(minute(2) + 20)
    assert one.state.failures == 2
    assert one.state.last_finish == minute(2) + 10


# History


def test_oldest_ended_runs_beyond_the_limits_are_deleted_once_recorded() -> None:
    one = life(successful_history_limit=1, failed_history_limit=0)
    one.look(minute(0))
    phases = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUCCEEDED, Phase.CANCELLED)
    for number, phase in enumerate(phases, 1):
        one.look(minute(number))
        one.end(number, phase, minute(number) + 10)
    unrecorded = one.state
    assert unrecorded.last_finish == minute(3) + 10
    surplus = decisions.to_delete(one.schedule, unrecorded, one.runs)
    assert [run.minute - START for run in surplus] == [1, 2]
    one.look(minute(4) + 20)
    surplus = decisions.to_delete(one.schedule, one.state, one.runs)
    assert [run.minute - START for run in surplus] == [1, 2, 4]


# Backfills


def backfilled(name: str = "b", **spec: Any) -> Backfill:
    values = {"start": START - 5, "end": START - 1, "one_at_a_time": False, "max_per_minute": 600}
    return Backfill(**{"name": name, **values, **spec})


def run_until(one: Life, end: float) -> None:
    """Look at it each time it asks to be looked at."""
    now = minute(0)
    while now <= end:
        one.look(now)
        now = max(one.wake if one.wake is not None else end + 1, now + 0.01)


def test_backfill_creates_its_runs_once() -> None:
    one = life("*/1 * * * *", end=START, backfills=(backfilled(),))
    run_until(one, minute(1))
    assert [number - START for number in one.created] == [-5, -4, -3, -2]
    (state,) = one.state.backfills
    assert state.completed is not None
    assert state.created == 4
    one.runs.clear()  # deleted as history
    run_until(one, minute(2))
    assert len(one.created) == 4
    assert one.state.last is None


def test_backfill_creates_so_many_a_minute() -> None:
    one = life(end=START, backfills=(backfilled(start=START - 100, max_per_minute=6),))
    run_until(one, minute(1) - 1)
    assert len(one.created) == 6
    run_until(one, minute(2) - 1)
    assert len(one.created) == 12


def test_backfill_leaves_out_runs_that_exist_and_what_is_excluded() -> None:
    one = life(end=START, excluded=((START - 4, START - 3),), backfills=(backfilled(),))
    name = one.schedule.run_name(START - 3)
    one.runs[name] = ScheduledRun(name, "x", START - 3, Phase.SUCCEEDED, 1.0)
    run_until(one, minute(1))
    assert [number - START for number in one.created] == [-5, -2]


def test_backfill_waits_for_active_runs_and_the_next_backfill_for_it() -> None:
    both = (backfilled("a", one_at_a_time=True, end=START - 3), backfilled("b", start=START - 2))
    one = life(end=START, backfills=both)
    assert one.look(minute(0)) == [-5]
    assert one.look(minute(1)) == []
    one.end(-5, Phase.SUCCEEDED, minute(1) + 1)
    assert one.look(minute(1) + 1) == [-4]
    one.end(-4, Phase.SUCCEEDED, minute(2))
    assert one.look(minute(2) + 1) == [-2]


def test_backfill_passes_over_many_runs_in_steps_and_before_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decisions, "_BACKFILL_STEPS", 2)
    one = life(end=START, backfills=(backfilled("a", start=START - 9), backfilled("b")))
    for number in range(-9, -2):
        name = one.schedule.run_name(START + number)
        one.runs[name] = ScheduledRun(name, "x", START + number, Phase.SUCCEEDED, 1.0)
    assert one.look(minute(0)) == []
    assert one.wake == minute(0)
    assert [state.name for state in one.state.backfills] == ["a"]
    run_until(one, minute(1))
    assert [number - START for number in one.created] == [-2]
    assert [state.completed is not None for state in one.state.backfills] == [True, True]


def test_backfill_of_times_that_are_not_past_leaves_them_to_the_schedule() -> None:
    one = life(backfills=(backfilled(end=START + 10),))
    run_until(one, minute(0) + 5)
    assert [number - START for number in one.created] == [-5, -4, -3, -2, -1, 0]
    assert one.look(minute(1)) == [1]


def test_paused_schedule_backfills_nothing() -> None:
    one = life(suspend=True, backfills=(backfilled(),))
    assert one.look(minute(0)) == []


# Refused


def test_refused_run_is_skipped_for_good() -> None:
    one = life()
    one.look(minute(0))
    request = one.decide(minute(1))
    assert request is not None
    one.state, skipped = decisions.on_refused(
        one.state, request, "Refused", "spec.queue is wrong", now=minute(1)
    )
    assert skipped.reason == "Refused"
    assert one.look(minute(1) + 1) == []
    assert one.look(minute(2)) == [2]


# Whatever happens


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_time_is_created_once_or_skipped_once_whatever_happens(data: st.DataObject) -> None:
    """Also over takeovers, whose leader knows what is recorded, and the Tasks there are."""
    one = life(
        data.draw(st.sampled_from(["* * * * *", "*/3 * * * *", "1,2,30 * * * *"])),
        concurrency_policy=data.draw(st.sampled_from(list(ConcurrencyPolicy))),
        missed_policy=data.draw(st.sampled_from(list(MissedPolicy))),
        missed_limit=data.draw(st.integers(1, 5)),
        jitter=data.draw(st.integers(0, 70)),
        starting_deadline_seconds=data.draw(st.sampled_from([None, 30, 300])),
    )
    now = minute(0)
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.sampled_from([1.0, 20.0, 60.0, 200.0, 1000.0]))
        recorded = one.state
        before, missed = len(one.skipped), recorded.missed
        one.look(now)
        assert one.state.missed >= missed
        assert (one.state.decided or 0) >= (recorded.decided or 0)
        if data.draw(st.booleans(), label="killed before it was recorded"):
            one.state = recorded
            del one.skipped[before:]
        for run in [run for run in one.runs.values() if run.active]:
            if data.draw(st.booleans(), label="ended"):
                one.end(run.minute - START, Phase.SUCCEEDED, now)
    one.look(now)
    created = [number - START for number in one.created]
    skipped = [number for number, _ in one.skipped]
    waiting = [number - START for number in one.state.buffered]
    everything = sorted(created + skipped + waiting)
    assert len(set(created)) == len(created)
    until = int((now - one.schedule.jitter) // 60)
    assert everything == [
        number - START for number in calendar_of(one.schedule).matches(START, until)
    ]
