"""Workers that are killed in the middle of a Task."""

import pytest

from tests.e2e.gates import Gates, template
from tests.e2e.harness import Harness, true_conditions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness, gates: Gates) -> None:
    harness.queue(scaling={"minReplicas": 2}, workers={"template": template()})
    harness.queue(
        "fragile", scaling={"minReplicas": 3, "maxReplicas": 3}, workers={"concurrency": 1}
    )
    harness.processes.prepare()


def test_another_worker_runs_what_a_killed_one_had(harness: Harness, gates: Gates) -> None:
    harness.available(2)
    (name,) = gates.behind("interrupted", 1)
    lost = harness.phase(name, "Running")["worker"]
    harness.kill(lost)
    gates.open("interrupted")
    status = harness.finished(name)
    assert status["phase"] == "Succeeded"
    assert status["result"]["pod"] != lost
    assert status["worker"] == status["result"]["pod"]
    assert status["attempts"] == 1
    assert len(status["history"]) == 1


def test_a_task_that_saves_checkpoints_goes_on_where_its_workers_were_killed(
    harness: Harness,
) -> None:
    harness.available(2)
    harness.task("stepwise", "steps", payload={"steps": 10, "seconds": 1}, maxDeliveries=2)
    killed: set[str] = set()
    for _ in range(2):  # as many as maxDeliveries, were nothing saved in between
        lost = harness.running_elsewhere("stepwise", killed)
        harness.kill(lost)
        killed.add(lost)
    status = harness.finished("stepwise", seconds=120)
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1), status
    begun = status["result"]["begun"]
    assert set(begun) == set(range(10))
    assert max(begun.count(step) for step in range(10)) <= 2, begun
    assert status["checkpoint"]["done"] == 10


def test_an_attempt_that_kills_its_workers_is_given_up(harness: Harness) -> None:
    harness.available(3, "fragile")
    harness.task("deadly", "die", queue="fragile", maxDeliveries=2, retry={"maxAttempts": 1})
    status = harness.finished("deadly", seconds=90)
    assert (status["phase"], status["reason"]) == ("Failed", "WorkerLost")
    assert status["message"].startswith("attempt 1 of 1: WorkerLost: ")
    assert status["attempts"] == 1
    assert true_conditions(status) == {"Finished", "Failed", "Stalled"}
    pods = harness.pods("fragile")
    restarts = [one["restartCount"] for pod in pods for one in pod["status"]["containerStatuses"]]
    assert sum(restarts) <= 2


def test_other_queues_do_not_notice(harness: Harness) -> None:
    harness.task("elsewhere")
    assert harness.finished("elsewhere")["phase"] == "Succeeded"
