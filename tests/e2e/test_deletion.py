"""Tasks and TaskQueues that are deleted before their time."""

import pytest

from tests.e2e.harness import Harness, true_conditions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    make_queue(harness)


def make_queue(harness: Harness) -> None:
    harness.queue(
        dispatch={"maxPublished": 1},
        workers={"concurrency": 1},
        scaling={"minReplicas": 1, "maxReplicas": 1},
    )


def uid(harness: Harness, name: str) -> str:
    found: str = harness.api.get(harness.path("tasks", name))["metadata"]["uid"]
    return found


def test_a_waiting_task_that_is_deleted_never_runs(harness: Harness) -> None:
    harness.task("before", "nap", payload={"seconds": 3})
    harness.phase("before", "Running")
    harness.task("unwanted")
    unwanted = uid(harness, "unwanted")
    harness.task("wanted")
    harness.delete_task("unwanted")
    assert harness.finished("wanted")["phase"] == "Succeeded"
    log = harness.worker_log()
    assert uid(harness, "wanted") in log
    assert unwanted not in log


def test_a_running_task_that_is_deleted_is_forgotten(harness: Harness) -> None:
    harness.task("running", "nap", payload={"seconds": 3})
    harness.phase("running", "Running")
    former = uid(harness, "running")
    harness.delete_task("running")
    # The window of one is free again for the next, though the worker is not.
    harness.task("running", payload={"made": "anew"})
    status = harness.finished("running")
    assert status["result"] == {"made": "anew"}
    assert status["attempts"] == 1
    assert uid(harness, "running") != former
    assert not [
        line for line in harness.operator_log(-1).splitlines() if former in line and "error" in line
    ]
    harness.queue_status(lambda status: status.get("backlog") == 0, what="empty")


def test_tasks_wait_for_a_queue_that_is_deleted(harness: Harness) -> None:
    harness.task("under-way", "nap", payload={"seconds": 20})
    harness.phase("under-way", "Running")
    waiting = harness.batch("stranded", 3)
    harness.delete_queue()
    for name in waiting:
        status = harness.phase(name, "Blocked")
        assert status["reason"] == "QueueNotFound"
        assert f"there is no TaskQueue {harness.namespace}/q: create it" in status["message"]
        assert true_conditions(status) == {"Reconciling"}
    harness.delete_task("under-way")
    make_queue(harness)
    for status in harness.all_finished(waiting, seconds=90):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)


def test_tasks_at_the_broker_wait_for_their_queue_as_well(harness: Harness) -> None:
    harness.queue("shelf", workers={"template": None})
    names = harness.batch("shelved", 3, queue="shelf")
    harness.queue_status(lambda status: status.get("ready") == 3, "shelf", what="published")
    harness.delete_queue("shelf")
    for name in names:
        assert harness.phase(name, "Blocked")["reason"] == "QueueNotFound"
    harness.queue("shelf", scaling={"maxReplicas": 1})
    for status in harness.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
        assert len(status["history"]) == 1
