"""TaskSchedules and their Tasks between JSON and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.api.taskschedule_status import TaskScheduleResourceStatus
from taskqueue.kubernetes.schedule_codec import (
    jitter_of,
    owner_of,
    read_run,
    read_schedule,
    read_state,
    status_body,
    task_of,
)
from taskqueue.kubernetes.task_codec import read_task
from taskqueue.model.schedule import (
    BackfillState,
    ConcurrencyPolicy,
    Schedule,
    ScheduleCondition,
    ScheduleState,
)
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import raw_task

EARLY, LATE = "2026-01-01T00:00:30Z", "2026-01-01T02:00:00+01:00"
MINUTE = 29_453_760  # 2026-01-01T00:00:00Z


def raw_schedule(annotations: dict[str, str] | None = None, /, **spec: Any) -> dict[str, Any]:
    template = {"spec": {"queue": "q", "handler": "h"}}
    return {
        "metadata": {
            "name": "s",
            "namespace": "shop",
            "uid": "u",
            "generation": 2,
            "creationTimestamp": EARLY,
            "annotations": annotations or {},
        },
        "spec": {"schedules": ["* * * * *"], "taskTemplate": template, **spec},
    }


def test_times_are_whole_minutes_none_of_which_is_outside() -> None:
    window: dict[str, Any] = {"startTime": EARLY, "endTime": LATE}
    backfill = {"name": "b", "concurrencyPolicy": "Allow", **window}
    found = read_schedule(
        raw_schedule(
            exclude=[window], backfills=[backfill], concurrencyPolicy="BufferOne", **window
        )
    )
    assert found.excluded == ((MINUTE + 1, MINUTE + 60),)
    assert (found.start, found.end) == (MINUTE + 1, MINUTE + 60)
    (one,) = found.backfills
    assert (one.start, one.end, one.one_at_a_time) == (MINUTE + 1, MINUTE + 60, False)
    assert found.concurrency_policy is ConcurrencyPolicy.BUFFER_ONE
    assert found.created == MINUTE * 60 + 30


def test_pause_by_hand_has_a_reason_and_resuming_a_time() -> None:
    assert read_schedule(raw_schedule()).pause_reason == ""
    for text, reason in (("a look", "a look"), ("", "no reason given")):
        raw = raw_schedule({"taskqueue.dev/paused": text})
        assert read_schedule(raw).pause_reason == reason
    for text, time in (("2026-01-01T00:00:00Z", MINUTE * 60.0), ("now", None)):
        raw = raw_schedule({"taskqueue.dev/resumed-at": text})
        assert read_schedule(raw).resumed == time


@given(uid=st.uuids().map(str), longest=st.integers(0, 86_400))
def test_jitter_is_within_its_bound_and_always_the_same(uid: str, longest: int) -> None:
    assert 0 <= jitter_of(uid, longest) <= longest
    assert jitter_of(uid, longest) == jitter_of(uid, longest)


def test_jitter_is_spread_evenly() -> None:
    found = [jitter_of(f"uid-{number}", 9) for number in range(2000)]
    assert all(150 < found.count(value) < 250 for value in range(10))


minutes = st.integers(MINUTE, MINUTE + 10**6)
times = st.integers(MINUTE * 60_000, MINUTE * 60_000 + 10**9).map(lambda ms: ms / 1000)
states = st.builds(
    ScheduleState,
    decided=st.none() | minutes,
    last=st.none() | minutes,
    lateness=st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
    last_success=st.none() | times,
    missed=st.integers(0, 10**6),
    buffered=st.lists(minutes, max_size=5, unique=True).map(tuple),
    paused=st.booleans(),
    failures=st.integers(0, 1000),
    last_finish=st.none() | times,
    backfills=st.lists(
        st.builds(
            BackfillState,
            name=st.sampled_from(["a", "b"]),
            decided=minutes,
            until=minutes,
            created=st.integers(0, 10**6),
            completed=st.none() | times,
        ),
        max_size=2,
    ).map(tuple),
)


def body_of(schedule: Schedule, state: ScheduleState, *conditions: ScheduleCondition) -> Any:
    return status_body(
        schedule,
        state,
        description="every minute",
        next_minutes=[MINUTE],
        active=1,
        conditions=conditions,
        transitions={one.type: (one.holds, MINUTE * 60.0) for one in conditions},
    )


@given(state=states)
def test_another_leader_reads_what_was_written(state: ScheduleState) -> None:
    raw = raw_schedule()
    schedule = read_schedule(raw)
    body = body_of(schedule, state)
    TaskScheduleResourceStatus.model_validate(body)
    assert read_state({**raw, "status": body}) == state


def test_pause_after_failures_and_the_last_skipped_run_are_conditions() -> None:
    raw = raw_schedule()
    paused = ScheduleCondition("Paused", True, "TooManyFailures", "3 failed")
    skipped = ScheduleCondition("RunSkipped", True, "Excluded", "a freeze")
    body = body_of(read_schedule(raw), ScheduleState(paused=True), paused, skipped)
    found = read_state({**raw, "status": body})
    assert found.auto_paused == MINUTE * 60
    assert found.skipped is not None
    assert (found.skipped.reason, found.skipped.message) == ("Excluded", "a freeze")
    by_hand = replace(paused, reason="Suspended")
    body = body_of(read_schedule(raw), ScheduleState(paused=True), by_hand)
    assert read_state({**raw, "status": body}).auto_paused is None


def test_task_of_a_run_is_read_as_one_and_knows_its_time() -> None:
    schedule = read_schedule(raw_schedule())
    template = b'{"metadata":{"labels":{"a":"b"}},"spec":{"queue":"q","handler":"h"}}'
    made = task_of(schedule, template, MINUTE)
    made["metadata"] |= {"uid": "t", "creationTimestamp": EARLY}
    assert owner_of(made) == "u"
    run = read_run(made)
    assert run is not None
    assert (run.name, run.minute, run.phase, run.active) == (
        f"s-{MINUTE}",
        MINUTE,
        Phase.PENDING,
        True,
    )
    assert read_task(made).scheduled_time == "2026-01-01T00:00:00Z"
    made["status"] = {"phase": "Failed", "completionTime": EARLY}
    ended = read_run(made)
    assert ended is not None
    assert (ended.phase, ended.finished) == (Phase.FAILED, MINUTE * 60 + 30)


@pytest.mark.parametrize("text", ["", "noon", "99999-01-01T00:00:00Z", "2026-01-01"])
def test_annotation_that_is_no_time_is_no_time_of_a_run(text: str) -> None:
    raw = raw_task()
    raw["metadata"]["annotations"] = {"taskqueue.dev/scheduled-time": text}
    assert read_task(raw).scheduled_time in ("", "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "owner",
    [
        {"kind": "TaskSchedule", "uid": "u"},
        {"kind": "Task", "uid": "u", "controller": True},
        {"kind": "TaskSchedule", "controller": True},
    ],
)
def test_label_alone_makes_no_run(owner: dict[str, Any]) -> None:
    raw = raw_task()
    raw["metadata"]["ownerReferences"] = [owner]
    assert owner_of(raw) == ""
