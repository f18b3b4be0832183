"""How schedules are served: Tasks created in time, once, over takeovers and failures."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from taskqueue.controller.schedules.decisions import RunRequest
from taskqueue.controller.schedules.run_creator import RunCreator
from taskqueue.controller.schedules.schedule_controller import WORKERS
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.schedule_codec import SCHEDULE_LABEL, read_schedule
from taskqueue.model.schedule import ScheduledRun
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import now
from tests.unit.controller.schedules.fake_tasks_api import (
    FakeCluster,
    FakeOperator,
    first_minute,
)

pytestmark = pytest.mark.looptime


async def until_minute(number: int, seconds: float = 1.0) -> None:
    """Wait until so many seconds after a minute since the epoch."""
    await asyncio.sleep(max(number * 60 + seconds - now(), 0))


async def until_steady() -> None:
    await asyncio.sleep(0.5)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


async def test_task_is_created_at_its_minute_with_all_that_is_said_of_it(
    cluster: FakeCluster,
) -> None:
    template = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {"queue": "q", "handler": "h", "payload": {"a": None}},
    }
    raw = cluster.apply(taskTemplate=template)
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute)
    (task,) = cluster.tasks.values()
    assert task["spec"] == template["spec"]
    assert task["metadata"]["name"] == f"s-{minute}"
    assert task["metadata"]["labels"] == {"team": "a", SCHEDULE_LABEL: "s"}
    time = to_rfc3339(minute * 60, "seconds")
    assert task["metadata"]["annotations"] == {"note": "b", "taskqueue.dev/scheduled-time": time}
    (owner,) = task["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("TaskSchedule", raw["metadata"]["uid"])
    assert owner["controller"]
    assert cluster.created_at[f"s-{minute}"] - minute * 60 < 0.1
    status = cluster.status()
    assert (status["lastScheduleTime"], status["active"]) == (time, 1)
    assert status["nextTimes"] == [
        to_rfc3339((minute + ahead) * 60, "seconds") for ahead in (1, 2, 3)
    ]
    assert "every minute" in status["description"].lower()
    assert cluster.condition("Ready")[:2] == ("True", "Scheduled")
    assert cluster.condition("RunSkipped")[0] == "False"
    await operator.kill()


async def test_status_is_not_written_while_nothing_changes(cluster: FakeCluster) -> None:
    cluster.apply(schedules=["0 0 1 1 *"])
    operator = FakeOperator(cluster)
    await until_steady()
    written = cluster.status()
    operator.controller._on_runs_changed(cluster.schedules["s"]["metadata"]["uid"])
    await asyncio.sleep(3600)
    assert cluster.status() is written
    assert sum(cluster.requests.values()) == 0
    await operator.kill()


async def test_killed_operator_is_followed_by_one_that_fires_nothing_twice(
    cluster: FakeCluster,
) -> None:
    """It is killed at each point of what it does at the minute."""
    for name in ("a", "b", "c"):
        cluster.apply(name)
    minute = first_minute()
    for step in range(12):
        operator = FakeOperator(cluster)
        await until_minute(minute + step, 0.0005 * step)
        await operator.kill()
        await asyncio.sleep(5)
    operator = FakeOperator(cluster)
    await until_steady()
    assert set(cluster.creations.values()) == {1}
    assert len(cluster.creations) == 3 * 12
    await operator.kill()


async def test_run_that_was_deleted_unrecorded_is_protected_from_its_time_to_live(
    cluster: FakeCluster,
) -> None:
    cluster.apply()
    operator, minute = FakeOperator(cluster), first_minute()
    key = ("shop", f"s-{minute}")
    assert not operator.controller.is_unrecorded(key)
    await until_minute(minute, 0.004)
    assert operator.controller.is_unrecorded(key)
    await until_minute(minute, 1)
    cluster.end(key[1])
    assert operator.controller.is_unrecorded(key)  # its end is not counted yet
    await until_steady()
    assert not operator.controller.is_unrecorded(key)
    await operator.kill()


async def test_300_schedules_of_one_minute_survive_a_kill_and_an_absence_of_three_minutes(
    cluster: FakeCluster,
) -> None:
    policies = ("None", "Last", "All")
    for number in range(300):
        cluster.apply(f"s{number:03}", missedRuns={"policy": policies[number % 3]})
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute, 5)
    late = [at - minute * 60 for at in cluster.created_at.values()]
    assert len(late) == 300
    assert max(late) < 5
    await until_minute(minute + 1, 0.05)
    await operator.kill()
    killed = sum(name.endswith(f"-{minute + 1}") for name in cluster.tasks)
    assert 0 < killed < 300
    await until_minute(minute + 4, 30)
    operator = FakeOperator(cluster)
    await asyncio.sleep(10)
    assert set(cluster.creations.values()) == {1}
    for number in range(300):
        made = {m for m in range(5) if f"s{number:03}-{minute + m}" in cluster.tasks}
        # What was created before the kill is in either way; the minute of the return is on time.
        missing = {m for m in range(5)} - made
        allowed = {"None": {1, 2, 3}, "Last": {1, 2, 3}, "All": set()}[policies[number % 3]]
        assert missing <= allowed
        assert {2, 3} <= missing or policies[number % 3] == "All"
    await operator.kill()


async def test_jitter_spreads_schedules_always_in_the_same_way(cluster: FakeCluster) -> None:
    for number in range(50):
        cluster.apply(f"s{number}", schedules=["*/5 * * * *"], jitterSeconds=60)
    operator = FakeOperator(cluster)
    minute = -(-first_minute() // 5) * 5
    await until_minute(minute + 7)
    delays = []
    for number in range(50):
        first, second = (
            cluster.created_at[f"s{number}-{minute + ahead}"] - (minute + ahead) * 60
            for ahead in (0, 5)
        )
        assert first == pytest.approx(second, abs=0.1)
        delays.append(round(first))
    assert len(set(delays)) > 20
    assert 0 <= min(delays) < 20
    assert 40 < max(delays) <= 60
    await operator.kill()


# Failures


async def test_schedules_that_hang_or_fail_do_not_hold_up_the_others(
    cluster: FakeCluster,
) -> None:
    bad = 3 * WORKERS
    for number in range(bad):
        cluster.apply(f"bad{number}")
    for number in range(20):
        cluster.apply(f"good{number}", jitterSeconds=3)  # most come after the bad ones

    async def time_out() -> None:
        await asyncio.sleep(10)
        raise ApiError(0, "Unreachable", "timed out")

    # Only the template tells them apart, and that is read for large ones.
    for number in range(bad):
        template = {"spec": {"queue": "q", "handler": "h", "payload": {"x": "y" * 5000}}}
        cluster.apply(
            f"bad{number}",
            schedules=["*/2 * * * *"],
            missedRuns={"policy": "None"},
            taskTemplate=template,
        )
    cluster.on_request = lambda method, path: (
        time_out() if method == "GET" and "/bad" in path else None
    )
    operator, minute = FakeOperator(cluster), -(-first_minute() // 2) * 2
    await until_minute(minute, 45)
    status, reason, message = cluster.condition("Ready", "bad0")
    assert (status, reason) == ("False", "CreateFailed")
    assert "timed out" in message
    await until_minute(minute + 4, 59)
    for ahead in (1, 2, 3, 4):  # in between they have nothing to do
        late = [
            cluster.created_at[f"good{number}-{minute + ahead}"] - (minute + ahead) * 60
            for number in range(20)
        ]
        assert max(late) < 4, "once they have failed, they wait among themselves"
    cluster.on_request = lambda method, path: None
    await until_minute(minute + 6)
    assert f"bad0-{minute + 6}" in cluster.tasks
    assert cluster.condition("Ready", "bad0")[:2] == ("True", "Scheduled")
    await operator.kill()


async def test_run_the_api_server_is_not_there_for_is_created_when_it_is_back(
    cluster: FakeCluster,
) -> None:
    cluster.apply()
    operator, minute = FakeOperator(cluster), first_minute()

    def refuse(method: str, path: str) -> None:
        raise ApiError(503, "ServiceUnavailable", "starting")

    cluster.on_request = refuse
    await until_minute(minute, 10)
    cluster.on_request = lambda method, path: None
    await until_minute(minute, 50)
    assert cluster.creations[f"s-{minute}"] == 1
    assert 10 <= cluster.status()["latenessSeconds"] < 50
    await operator.kill()


async def test_refused_task_is_skipped_and_says_why(cluster: FakeCluster) -> None:
    cluster.apply()
    operator, minute = FakeOperator(cluster), first_minute()

    def refuse(method: str, path: str) -> None:
        raise ApiError(422, "Invalid", "spec.queue is wrong")

    cluster.on_request = refuse
    await until_minute(minute)
    status, reason, message = cluster.condition("RunSkipped")
    assert (status, reason) == ("True", "Refused")
    assert "spec.queue is wrong" in message
    assert [one[:2] for one in operator.skipped] == [("s", "Refused")]
    cluster.on_request = lambda method, path: None
    await until_minute(minute + 1)
    assert list(cluster.creations) == [f"s-{minute + 1}"]
    assert cluster.condition("RunSkipped")[0] == "False"
    await operator.kill()


async def test_run_that_was_created_unseen_is_its_run(cluster: FakeCluster) -> None:
    schedule = read_schedule(cluster.apply())
    creator = RunCreator(cast(ApiClient, cluster))
    template = b'{"spec":{"queue":"q","handler":"h"}}'
    first, second = [
        await creator.create(schedule, RunRequest(first_minute()), template) for _ in range(2)
    ]
    assert isinstance(first, ScheduledRun)
    assert second == first
    assert set(cluster.creations.values()) == {1}


async def test_task_of_somebody_else_with_the_name_of_a_run_stays(cluster: FakeCluster) -> None:
    cluster.apply()
    minute = first_minute()
    other: dict[str, Any] = {
        "metadata": {"name": f"s-{minute}", "namespace": "shop", "uid": "other"},
        "spec": {},
    }
    cluster.tasks[f"s-{minute}"] = other
    operator = FakeOperator(cluster)
    await until_minute(minute)
    assert cluster.tasks[f"s-{minute}"] is other
    assert cluster.condition("RunSkipped")[1] == "NameTaken"
    await operator.kill()


@pytest.mark.parametrize(
    ("spec", "reason", "hint"),
    [
        ({"timeZone": "Europe/Berln"}, "UnknownTimeZone", "Europe/Berlin"),
        ({"schedules": ["0 0 * * *", "5-1 * * * *"]}, "InvalidSchedule", "1-5 * * * *"),
        ({"schedules": ["0 0 30 2 *"]}, "InvalidSchedule", "never comes"),
    ],
)
async def test_invalid_schedule_says_what_to_write_and_stops_no_other(
    cluster: FakeCluster, spec: dict[str, Any], reason: str, hint: str
) -> None:
    cluster.apply("bad", **spec)
    cluster.apply("good")
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute)
    assert list(cluster.tasks) == [f"good-{minute}"]
    for kind, holds in (("Ready", "False"), ("Stalled", "True")):
        status, why, message = cluster.condition(kind, "bad")
        assert (status, why) == (holds, reason)
        assert hint in message
    cluster.apply("bad")
    await until_minute(minute + 1)
    assert f"bad-{minute + 1}" in cluster.tasks
    assert cluster.condition("Ready", "bad")[0] == "True"
    await operator.kill()


async def test_object_that_cannot_be_read_stops_no_other(cluster: FakeCluster) -> None:
    cluster.apply("good")
    operator, minute = FakeOperator(cluster), first_minute()
    bad = {"metadata": {"name": "bad", "namespace": "shop", "uid": "bad"}, "spec": {}}
    operator.controller.on_upserted(bad)
    operator.controller.on_unreadable(bad, "too deep")
    task = {"metadata": {"name": "t", "namespace": "shop", "uid": "t", "ownerReferences": [3]}}
    operator.controller.runs.on_upserted(task)
    await until_minute(minute)
    assert list(cluster.tasks) == [f"good-{minute}"]
    await operator.kill()


# Ends


async def test_next_run_of_buffered_ones_starts_when_the_active_one_ends(
    cluster: FakeCluster,
) -> None:
    cluster.apply(concurrencyPolicy="BufferAll")
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute + 2)
    assert list(cluster.tasks) == [f"s-{minute}"]
    assert len(cluster.status()["buffered"]) == 2
    await operator.kill()
    operator = FakeOperator(cluster)
    await until_steady()
    for ahead in (0, 1):
        cluster.end(f"s-{minute + ahead}")
        await until_steady()
        assert cluster.creations[f"s-{minute + ahead + 1}"] == 1
    assert "buffered" not in cluster.status()
    await operator.kill()


async def test_replaced_run_is_cancelled(cluster: FakeCluster) -> None:
    cluster.apply(concurrencyPolicy="Replace")
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute + 1)
    assert cluster.cancelled == [f"s-{minute}"]
    assert list(cluster.tasks) == [f"s-{minute}", f"s-{minute + 1}"]
    cluster.end(f"s-{minute}", "Cancelled")
    await until_minute(minute + 2)
    assert cluster.cancelled == [f"s-{minute}", f"s-{minute + 1}"]
    await operator.kill()


async def test_history_is_kept_within_its_limits(cluster: FakeCluster) -> None:
    cluster.apply(successfulHistoryLimit=2, failedHistoryLimit=1)
    operator, minute = FakeOperator(cluster), first_minute()
    for ahead in range(6):
        await until_minute(minute + ahead)
        cluster.end(f"s-{minute + ahead}", "Failed" if ahead % 2 else "Succeeded")
    await until_steady()
    kept = sorted(int(name.rpartition("-")[2]) - minute for name in cluster.tasks)
    assert kept == [2, 4, 5]
    assert cluster.status()["lastSuccessfulTime"]
    await operator.kill()


async def test_failures_pause_it_also_for_the_next_leader_until_it_is_resumed(
    cluster: FakeCluster,
) -> None:
    cluster.apply(pauseAfterFailures=1)
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute)
    cluster.end(f"s-{minute}", "Failed")
    await until_minute(minute + 1)
    assert cluster.condition("Paused")[:2] == ("True", "TooManyFailures")
    assert cluster.status()["nextTimes"] == []
    await operator.kill()
    operator = FakeOperator(cluster)
    await until_minute(minute + 3)
    assert list(cluster.tasks) == [f"s-{minute}"]
    resumed = {"taskqueue.dev/resumed-at": to_rfc3339(now())}
    cluster.apply(pauseAfterFailures=1, annotations=resumed)
    await until_minute(minute + 4)
    assert cluster.creations[f"s-{minute + 4}"] == 1
    assert cluster.condition("Paused")[:2] == ("False", "Active")
    await operator.kill()


async def test_pause_by_hand_needs_no_change_of_the_spec(cluster: FakeCluster) -> None:
    cluster.apply()
    operator, minute = FakeOperator(cluster), first_minute()
    cluster.apply(annotations={"taskqueue.dev/paused": "a look at the data"})
    await until_minute(minute)
    status, reason, message = cluster.condition("Paused")
    assert (status, reason) == ("True", "PausedByHand")
    assert "a look at the data" in message
    assert cluster.status()["paused"]
    cluster.apply()
    await until_minute(minute + 1)
    assert list(cluster.tasks) == [f"s-{minute + 1}"]
    assert cluster.schedules["s"]["metadata"]["generation"] == 1
    await operator.kill()


async def test_backfill_is_done_once_also_for_the_next_leader(cluster: FakeCluster) -> None:
    start = first_minute() - 60
    backfill = {
        "name": "b",
        "startTime": to_rfc3339(start * 60),
        "endTime": to_rfc3339((start + 20) * 60),
        "concurrencyPolicy": "Allow",
        "maxPerMinute": 60,
    }
    cluster.apply(schedules=["*/2 * * * *"], backfills=[backfill], suspend=False)
    operator = FakeOperator(cluster)
    await asyncio.sleep(5)
    assert 3 <= len([name for name in cluster.creations if int(name[2:]) < start + 20]) <= 7
    await operator.kill()
    operator = FakeOperator(cluster)
    await asyncio.sleep(30)
    (status,) = cluster.status()["backfills"]
    assert (status["name"], "completionTime" in status) == ("b", True)
    past = [name for name in cluster.creations if int(name[2:]) < start + 20]
    assert len(past) == 10
    for name in past:
        cluster.remove_task(name)
    await operator.kill()
    operator = FakeOperator(cluster)
    await asyncio.sleep(5)
    assert {cluster.creations[name] for name in past} == {1}
    await operator.kill()


async def test_schedule_deleted_while_its_run_is_created_leaves_nothing(
    cluster: FakeCluster,
) -> None:
    template = {"spec": {"queue": "q", "handler": "h", "payload": {"x": "y" * 5000}}}
    cluster.apply(taskTemplate=template)
    operator, minute = FakeOperator(cluster), first_minute()
    await until_minute(minute, 0.001)
    cluster.delete_schedule("s")
    cluster.apply(schedules=["0 0 1 1 *"])  # another one of its name
    await until_minute(minute, 30)
    assert cluster.tasks == {}
    assert len(operator.controller) == 1
    cluster.delete_schedule("s")
    await asyncio.sleep(60)
    assert len(operator.controller) == 0
    await operator.kill()


async def test_task_deleted_before_its_creation_is_answered_is_not_active_for_ever(
    cluster: FakeCluster,
) -> None:
    cluster.apply(concurrencyPolicy="Forbid")
    operator, minute = FakeOperator(cluster), first_minute()
    runs = operator.controller.runs
    await until_minute(minute)
    uid = cluster.tasks[f"s-{minute}"]["metadata"]["uid"]
    (run,) = runs.of(cluster.schedules["s"]["metadata"]["uid"]).values()
    runs.on_deleted(("shop", run.name), uid)
    runs.put(cluster.schedules["s"]["metadata"]["uid"], "shop", run)
    assert runs.of(cluster.schedules["s"]["metadata"]["uid"]) == {}
    await operator.kill()
