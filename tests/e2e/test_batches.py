"""TaskBatches on the cluster: every item runs, Tasks beside them too, and edits take effect."""

from __future__ import annotations

import time

import pytest

from tests.e2e.batches import create, ended, status_of
from tests.e2e.harness import Harness, true_conditions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1}, workers={"concurrency": 4})
    harness.available(1)


def test_each_item_of_a_count_runs_and_failures_are_grouped(harness: Harness) -> None:
    create(harness, "counted", "every_second", count=400)
    status = ended(harness, "counted")
    assert (status["phase"], status["reason"]) == ("Failed", "ItemsFailed")
    assert (status["succeeded"], status["failed"], status["percent"]) == (200, 200, 100)
    assert status["errors"] == [
        {"type": "ValueError", "count": 200, "indexes": [1, 3, 5], "message": "odd"}
    ]
    assert true_conditions(status) == {"Finished", "Failed", "Stalled"}


def test_items_of_the_object_and_of_a_config_map_reach_the_handler(harness: Harness) -> None:
    items = [{"index": index, "n": index} for index in range(5)]
    create(harness, "listed", "knows_its_index", items=items)
    lines = "\n".join(f'{{"index": {index}}}' for index in range(7))
    source = {"configMapKeyRef": {"name": "items", "key": "lines"}}
    create(harness, "from-lines", "knows_its_index", itemsFrom=source)
    assert ended(harness, "listed")["succeeded"] == 5
    harness.until(
        lambda: status_of(harness, "from-lines").get("reason") == "ItemsNotFound",
        what="the TaskBatch waits for its items",
    )
    harness.create_core("configmaps", "items", data={"lines": lines})
    assert ended(harness, "from-lines")["succeeded"] == 7


def test_a_batch_without_items_is_complete(harness: Harness) -> None:
    create(harness, "none", "echo", count=0)
    assert true_conditions(ended(harness, "none")) == {"Finished", "Complete"}


def test_a_task_beside_a_large_batch_does_not_wait_for_it(harness: Harness) -> None:
    create(harness, "large", "nap", items=[{"seconds": 1.0}] * 1000)
    harness.until(
        lambda: status_of(harness, "large").get("succeeded", 0) >= 4, what="the batch under way"
    )
    harness.task("beside")
    status = harness.finished("beside")
    assert status["phase"] == "Succeeded"
    assert status_of(harness, "large")["phase"] == "Running"
    backlog = harness.api.get(harness.path("taskqueues", "q"))["status"]["backlog"]
    assert backlog > 500


def test_a_suspended_batch_rests_and_a_cancelled_one_ends(harness: Harness) -> None:
    path = harness.path("taskbatches", "large")
    harness.api.patch(path, {"spec": {"suspend": True}})
    harness.until(
        lambda: status_of(harness, "large")["phase"] == "Suspended", what="the batch suspended"
    )
    harness.until(
        lambda: status_of(harness, "large").get("active", 0) == 0, what="its items recalled"
    )
    before = status_of(harness, "large").get("succeeded", 0)
    time.sleep(2.5)
    assert status_of(harness, "large").get("succeeded", 0) == before
    harness.api.patch(path, {"spec": {"suspend": False}})
    harness.until(
        lambda: status_of(harness, "large").get("succeeded", 0) > before, what="the batch resumed"
    )
    harness.api.patch(path, {"spec": {"cancel": True}})
    status = ended(harness, "large")
    assert (status["phase"], status.get("failed", 0)) == ("Cancelled", 0)
    assert status["succeeded"] + status["cancelled"] == 1000


def test_a_deleted_batch_leaves_no_work_behind(harness: Harness) -> None:
    create(harness, "gone", "nap", items=[{"seconds": 1.0}] * 500, ttlSecondsAfterFinished=1)
    harness.until(lambda: status_of(harness, "gone").get("succeeded", 0) >= 4, what="under way")
    harness.api.request("DELETE", harness.path("taskbatches", "gone"))
    harness.until(
        lambda: harness.api.get(harness.path("taskqueues", "q"))["status"].get("backlog") == 0,
        what="no work left",
    )


def test_a_finished_batch_is_deleted_after_its_time_to_live(harness: Harness) -> None:
    create(harness, "brief", "echo", count=3, ttlSecondsAfterFinished=1)

    def is_gone() -> bool:
        found = harness.api.get(harness.path("taskbatches"))["items"]
        return "brief" not in [one["metadata"]["name"] for one in found]

    harness.until(is_gone, what="the TaskBatch deleted")
