"""Schedules on the cluster: Tasks at their minutes, with their time in the handler."""

from __future__ import annotations

import time

import pytest

from tests.e2e.harness import Harness, conditions
from tests.e2e.schedules import (
    PATIENCE_SECONDS,
    assert_run_once,
    next_minute,
    runs_of,
    schedule,
    status_of,
    time_of,
    until_created,
)

pytestmark = pytest.mark.cluster

#: Schedules of one minute.
MANY = ("first", "second")


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)


def test_runs_are_created_at_their_minute_and_know_it(harness: Harness) -> None:
    minute = next_minute()
    for name in MANY:
        schedule(harness, name)
    until_created(harness, MANY, minute)
    for name in MANY:
        assert_run_once(harness, f"{name}-{minute}", minute)

        def recorded(name: str = name) -> bool:
            return str(status_of(harness, name).get("lastScheduleTime", "")) >= time_of(minute)

        harness.until(recorded, what="the run recorded")
        assert conditions(status_of(harness, name))["Ready"]["status"] == "True"


def test_schedule_that_is_deleted_takes_its_tasks_along(harness: Harness) -> None:
    harness.api.request("DELETE", harness.path("taskschedules", MANY[0]))
    for run in runs_of(harness, MANY[0]):
        harness.tasks.wait_deleted(run)


def test_backfill_creates_the_runs_of_the_past_once(harness: Harness) -> None:
    now = int(time.time() // 60)
    backfill = {"name": "past", "startTime": time_of(now - 100), "endTime": time_of(now - 97)}
    schedule(harness, "filled", schedules=["* * * * *"], suspend=True, backfills=[backfill])
    harness.until(
        lambda: status_of(harness, "filled").get("paused", False), what="the schedule paused"
    )
    assert runs_of(harness, "filled") == []
    path = harness.path("taskschedules", "filled")
    harness.api.patch(path, {"spec": {"suspend": False, "schedules": ["*/1 0-23 * * *"]}})

    def done() -> bool:
        found = status_of(harness, "filled").get("backfills") or [{}]
        return "completionTime" in found[0]

    harness.until(done, what="the backfill done", seconds=PATIENCE_SECONDS)
    past = [run for run in runs_of(harness, "filled") if int(run.rpartition("-")[2]) < now - 90]
    assert past == [f"filled-{minute}" for minute in range(now - 100, now - 97)]
    harness.api.patch(path, {"metadata": {"annotations": {"taskqueue.dev/paused": "enough"}}})
    harness.until(
        lambda: conditions(status_of(harness, "filled"))["Paused"]["reason"] == "PausedByHand",
        what="the schedule paused by hand",
    )


def test_schedule_that_cannot_be_served_says_what_to_write_instead(harness: Harness) -> None:
    schedule(harness, "wrong", timeZone="Europe/Berln")
    harness.until(
        lambda: "conditions" in status_of(harness, "wrong"), what="a condition of the schedule"
    )
    ready = conditions(status_of(harness, "wrong"))["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "UnknownTimeZone")
    assert "Europe/Berlin" in ready["message"]
