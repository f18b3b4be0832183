"""A queue that is held back, drained and let go again."""

import pytest

from tests.e2e.harness import Harness, conditions

pytestmark = pytest.mark.cluster


def test_a_held_queue_publishes_nothing_and_goes_on_when_let_go(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.task("before", "nap", payload={"seconds": 4})
    harness.phase("before", "Running")
    harness.change_queue(stopPolicy="Hold")
    message = harness.condition("Ready", "True", "Held")
    assert "nothing new is published" in message
    names = harness.batch("held", 3)
    assert harness.finished("before")["phase"] == "Succeeded"  # what was published runs on
    status = harness.queue_status(
        lambda status: status.get("pending") == 3 and status.get("running") == 0, what="held"
    )
    assert status["ready"] == 0
    for name in names:
        assert harness.tasks.versions(name)[-1]["status"]["phase"] == "Pending"
    harness.change_queue(stopPolicy="None")
    for ended in harness.all_finished(names):
        assert (ended["phase"], ended["attempts"]) == ("Succeeded", 1)
    harness.ready()


def test_speed_is_measured(harness: Harness) -> None:
    status = harness.queue_status(
        lambda status: status.get("throughputPerMinute", 0) >= 4, what="measured"
    )
    assert status["meanRunSeconds"] > 0


def test_a_drained_queue_loses_its_workers_while_tasks_wait(harness: Harness) -> None:
    harness.available(1)
    harness.task("last", "nap", payload={"seconds": 4})
    harness.phase("last", "Running")
    harness.change_queue(stopPolicy="HoldAndDrain")
    harness.condition("Ready", "True", "Held")
    names = harness.batch("waits", 3)
    assert harness.finished("last")["attempts"] == 1  # its worker stayed to the end
    status = harness.queue_status(lambda status: status.get("desiredReplicas") == 0, what="drained")
    assert "drained by stopPolicy HoldAndDrain" in status["scaling"]
    assert status["pending"] == 3
    assert conditions(status)["WorkersAvailable"]["reason"] == "ScaledToZero"
    harness.available(0)
    harness.change_queue(stopPolicy="None")
    for ended in harness.all_finished(names):
        assert ended["phase"] == "Succeeded"
