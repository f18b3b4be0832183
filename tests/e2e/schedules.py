"""TaskSchedules of a test namespace."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from tests.e2e.api import Body
from tests.e2e.harness import Harness

#: A run is due within a minute.
PATIENCE_SECONDS = 180


def schedule(harness: Harness, name: str, **spec: Any) -> None:
    """Create a TaskSchedule of one minute."""
    template = {"spec": {"queue": "q", "handler": "scheduled"}}
    harness.api.request(
        "POST",
        harness.path("taskschedules"),
        {
            "apiVersion": f"{harness.group}/v1alpha1",
            "kind": "TaskSchedule",
            "metadata": {"name": name},
            "spec": {"schedules": ["* * * * *"], "taskTemplate": template, **spec},
        },
    )


def status_of(harness: Harness, name: str) -> Body:
    """Return the status of a TaskSchedule; empty until it has one."""
    status: Body = harness.api.get(harness.path("taskschedules", name)).get("status") or {}
    return status


def runs_of(harness: Harness, name: str) -> list[str]:
    """Return the names of the Tasks of a schedule that were ever seen."""
    return sorted(one for one in harness.tasks.names() if one.startswith(f"{name}-"))


def time_of(minute: int) -> str:
    """Return the time of a minute since the epoch."""
    return f"{datetime.fromtimestamp(minute * 60, UTC):%Y-%m-%dT%H:%M:%SZ}"


def next_minute() -> int:
    """Return the next minute since the epoch, with enough time before it to create schedules."""
    return int((time.time() + 3) // 60) + 1


def until_created(harness: Harness, names: Iterable[str], minute: int) -> None:
    """Wait until these schedules have created their runs of a minute."""
    wanted = {f"{name}-{minute}" for name in names}
    harness.until(
        lambda: wanted <= set(harness.tasks.names()),
        what=f"the runs of minute {minute} created",
        seconds=PATIENCE_SECONDS,
    )


def assert_run_once(harness: Harness, run: str, minute: int) -> None:
    """Fail unless a run ends well, saw its time, and was created once."""
    assert harness.finished(run)["result"] == {"at": str(datetime.fromtimestamp(minute * 60, UTC))}
    uids = {one["metadata"]["uid"] for one in harness.tasks.versions(run)}
    assert len(uids) == 1, f"{run} was created {len(uids)} times"
