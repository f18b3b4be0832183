"""Schedules on the cluster while their operator is lost at the minute."""

from __future__ import annotations

import time

import pytest

from tests.e2e.harness import Harness
from tests.e2e.schedules import assert_run_once, next_minute, schedule, until_created

pytestmark = pytest.mark.cluster

#: Schedules of one minute.
MANY = [f"many{number}" for number in range(8)]
#: Into the minute, when the first of their Tasks are being created.
KILL_SECONDS = 0.05


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)


def test_runs_over_a_takeover_at_the_minute_are_created_once_each(harness: Harness) -> None:
    harness.leader()
    minute = next_minute()
    for name in MANY:
        schedule(harness, name)
    time.sleep(max(minute * 60 + KILL_SECONDS - time.time(), 0))
    harness.kill_operator()
    until_created(harness, MANY, minute)
    for name in MANY:
        assert_run_once(harness, f"{name}-{minute}", minute)
