"""A TaskBatch whose operator or worker is killed in the middle: nothing is lost."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.e2e.batches import create, ended, status_of
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster

ITEMS = 600
SLOTS = 4


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1}, workers={"concurrency": SLOTS})
    harness.available(1)


def test_items_run_on_after_two_kills_and_what_is_on_record_runs_once(harness: Harness) -> None:
    create(harness, "killed", "nap", items=[{"seconds": 0.1}] * ITEMS)
    for part in (100, 300):
        harness.until(
            lambda part=part: status_of(harness, "killed").get("succeeded", 0) >= part,  # type: ignore[misc]
            what=f"{part} items recorded",
        )
        harness.kill_operator()
    status = ended(harness, "killed", seconds=240)
    assert (status["phase"], status["succeeded"]) == ("Succeeded", ITEMS)
    runs = Counter(run.uid for run in harness.runs())
    assert len(runs) == ITEMS
    # At the broker when the operator was killed, twice: what runs, and as many as that or 0.2 s.
    assert sum(runs.values()) - ITEMS <= 2 * 2 * 2 * SLOTS


def test_items_of_a_worker_that_is_killed_run_on_another(harness: Harness) -> None:
    create(harness, "orphaned", "nap", items=[{"seconds": 0.2}] * 200)
    harness.until(
        lambda: status_of(harness, "orphaned").get("succeeded", 0) >= 20, what="items recorded"
    )
    (pod,) = harness.pods()
    harness.kill(pod["metadata"]["name"])
    status = ended(harness, "orphaned", seconds=240)
    assert (status["phase"], status["succeeded"]) == ("Succeeded", 200)
