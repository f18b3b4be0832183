"""What the API server takes, completes and refuses of TaskSchedules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.admission import TEST_GROUP, Api, Body, assert_refused

pytestmark = pytest.mark.cluster

SCHEDULES = f"taskschedules.{TEST_GROUP}"
TEMPLATE: Body = {"spec": {"queue": "q", "handler": "h"}}
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


def schedule(name: str = "s", /, **spec: Any) -> Body:
    """Return a TaskSchedule's manifest; a field given as None is left out."""
    fields = {"schedules": ["30 3 * * MON-FRI"], "taskTemplate": TEMPLATE} | spec
    return {
        "apiVersion": f"{TEST_GROUP}/v1alpha1",
        "kind": "TaskSchedule",
        "metadata": {"name": name},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def test_a_minimal_schedule_gets_every_default(api: Api) -> None:
    created = api.create(schedule())
    spec = created["spec"]
    assert spec.pop("taskTemplate") == {"metadata": {}, **TEMPLATE}
    assert spec == {
        "schedules": ["30 3 * * MON-FRI"],
        "timeZone": "UTC",
        "concurrencyPolicy": "Allow",
        "missedRuns": {"policy": "Last", "limit": 10},
        "jitterSeconds": 0,
        "suspend": False,
        "successfulHistoryLimit": 3,
        "failedHistoryLimit": 1,
    }
    assert created["status"] == {"observedGeneration": -1}


def test_all_forms_of_an_expression_are_taken(api: Api) -> None:
    crons = [
        "* * * * *",
        "*/15 0-23/2 1,15 JAN-MAR,12 mon-fri",
        "0 0 L * *",
        "0 0 LW * *",
        "0 0 * * FRI#2",
        "0 0 * * 5L",
        "05 03  01  01  7",
    ]
    assert api.create(schedule(schedules=crons))["spec"]["schedules"] == crons


@pytest.mark.parametrize(
    "cron",
    [
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "1--100000000 * * * *",
        "0-99999999 * * * *",
        "* * * *",
        "* * * * * *",
        "@daily  * *",
        "* * * * MONDAY",
    ],
)
def test_expression_out_of_bounds_is_refused(api: Api, cron: str) -> None:
    done = api.try_create(schedule(schedules=[cron]))
    assert_refused(done, "five fields", "30 3 * * MON-FRI")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"schedules": []}, "spec.schedules"),
        ({"schedules": ["0 0 * * *"] * 2}, "Duplicate"),
        ({"schedules": [f"{minute} * * * *" for minute in range(17)]}, "at most 16"),
        ({"timeZone": "Europe/../Berlin"}, "spec.timeZone"),
        ({"taskTemplate": None}, "spec.taskTemplate: Required"),
        ({"taskTemplate": None, "batchTemplate": {}}, "batchTemplate"),
        ({"taskTemplate": {"spec": {"queue": "q"}}}, "handler: Required"),
        ({"startTime": LATE, "endTime": EARLY}, "startTime must be before"),
        ({"exclude": [{"startTime": LATE, "endTime": EARLY}]}, "startTime must be before"),
        ({"jitterSeconds": -1}, "jitterSeconds"),
        ({"missedRuns": {"limit": 101}}, "missedRuns.limit"),
        ({"concurrencyPolicy": "Never"}, "BufferOne"),
        (
            {"backfills": [{"name": "a", "startTime": EARLY, "endTime": LATE}] * 2},
            "Duplicate",
        ),
    ],
)
def test_spec_is_refused(api: Api, spec: Body, says: str) -> None:
    assert_refused(api.try_create(schedule(**spec)), says)


def test_name_is_too_long_for_its_tasks(api: Api) -> None:
    done = api.try_create(schedule("s" * 53))
    assert_refused(done, "at most 52 characters")


def test_template_may_change_as_a_task_may_not(api: Api) -> None:
    api.create(schedule())
    changed = {"spec": {"queue": "other", "handler": "other", "payload": {"a": 1}}}
    done = api.patch(f"{SCHEDULES}/s", {"spec": {"taskTemplate": changed}})
    assert done.returncode == 0, done.stderr


def test_what_is_decided_stays_decided(api: Api) -> None:
    api.create(schedule())
    what = f"{SCHEDULES}/s"
    assert api.patch_status(what, {"decidedTime": LATE}).returncode == 0
    assert_refused(api.patch_status(what, {"decidedTime": EARLY}), "never decreases")
    assert_refused(api.patch_status(what, {"decidedTime": None}), "never decreases")
    assert api.patch_status(what, {"decidedTime": LATE}).returncode == 0


def test_columns_of_schedules(api: Api) -> None:
    api.create(schedule())
    api.patch_status(f"{SCHEDULES}/s", {"paused": True, "active": 2})
    header, row = (" ".join(line.split()) for line in api.run("get", SCHEDULES).stdout.splitlines())
    assert header == "NAME SCHEDULES ZONE PAUSED ACTIVE LAST AGE"
    assert row.startswith('s ["30 3 * * MON-FRI"] UTC true 2 ')


def test_fields_are_explained(api: Api) -> None:
    for field, says in (
        ("spec.missedRuns.policy", "made up for"),
        ("spec.taskTemplate.spec.handler", "Name of the handler"),
        ("status.nextTimes", "next three times"),
    ):
        done = api.run("explain", f"{SCHEDULES}.{field}")
        assert says in done.stdout, done.stderr
