"""Tasks and TaskQueues that are deleted before their time."""

import pytest

from tests.e2e.harness import Lab, true_conditions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab) -> None:
    make_queue(lab)


def make_queue(lab: Lab) -> None:
    lab.queue(
        dispatch={"maxPublished": 1},
        workers={"concurrency": 1},
        scaling={"minReplicas": 1, "maxReplicas": 1},
    )


def uid(lab: Lab, name: str) -> str:
    found: str = lab.api.get(lab.path("tasks", name))["metadata"]["uid"]
    return found


def test_a_waiting_task_that_is_deleted_never_runs(lab: Lab) -> None:
    lab.task("before", "nap", payload={"seconds": 3})
    lab.phase("before", "Running")
    lab.task("unwanted")
    unwanted = uid(lab, "unwanted")
    lab.task("wanted")
    lab.delete_task("unwanted")
    assert lab.finished("wanted")["phase"] == "Succeeded"
    log = lab.worker_log()
    assert uid(lab, "wanted") in log
    assert unwanted not in log


def test_a_running_task_that_is_deleted_is_forgotten(lab: Lab) -> None:
    lab.task("running", "nap", payload={"seconds": 3})
    lab.phase("running", "Running")
    former = uid(lab, "running")
    lab.delete_task("running")
    # The window of one is free again for the next, though the worker is not.
    lab.task("running", payload={"made": "anew"})
    status = lab.finished("running")
    assert status["result"] == {"made": "anew"}
    assert status["attempts"] == 1
    assert uid(lab, "running") != former
    assert not [
        line for line in lab.operator_log(200).splitlines() if former in line and "error" in line
    ]
    lab.queue_status(lambda status: status.get("backlog") == 0, what="empty")


def test_tasks_wait_for_a_queue_that_is_deleted(lab: Lab) -> None:
    lab.task("under-way", "nap", payload={"seconds": 20})
    lab.phase("under-way", "Running")
    waiting = lab.batch("stranded", 3)
    lab.delete_queue()
    for name in waiting:
        status = lab.phase(name, "Blocked")
        assert status["reason"] == "QueueNotFound"
        assert f"there is no TaskQueue {lab.namespace}/q: create it" in status["message"]
        assert true_conditions(status) == {"Reconciling"}
    lab.delete_task("under-way")
    make_queue(lab)
    for status in lab.all_finished(waiting, seconds=90):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)


def test_tasks_at_the_broker_wait_for_their_queue_as_well(lab: Lab) -> None:
    lab.queue("shelf", workers={"template": None})
    names = lab.batch("shelved", 3, queue="shelf")
    lab.queue_status(lambda status: status.get("ready") == 3, "shelf", what="published")
    lab.delete_queue("shelf")
    for name in names:
        assert lab.phase(name, "Blocked")["reason"] == "QueueNotFound"
    lab.queue("shelf", scaling={"maxReplicas": 1})
    for status in lab.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
        assert len(status["history"]) == 1
