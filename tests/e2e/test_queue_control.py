"""A queue that is held back, drained and let go again."""

import pytest

from tests.e2e.harness import Lab, conditions

pytestmark = pytest.mark.cluster


def test_a_held_queue_publishes_nothing_and_goes_on_when_let_go(lab: Lab) -> None:
    lab.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    lab.task("before", "nap", payload={"seconds": 4})
    lab.phase("before", "Running")
    lab.change_queue(stopPolicy="Hold")
    message = lab.condition("Ready", "True", "Held")
    assert "nothing new is published" in message
    names = lab.batch("held", 3)
    assert lab.finished("before")["phase"] == "Succeeded"  # what was published runs on
    status = lab.queue_status(
        lambda status: status.get("pending") == 3 and status.get("running") == 0, what="held"
    )
    assert status["ready"] == 0
    for name in names:
        assert lab.tasks.versions(name)[-1]["status"]["phase"] == "Pending"
    lab.change_queue(stopPolicy="None")
    for ended in lab.all_finished(names):
        assert (ended["phase"], ended["attempts"]) == ("Succeeded", 1)
    lab.ready()


def test_speed_is_measured(lab: Lab) -> None:
    status = lab.queue_status(
        lambda status: status.get("throughputPerMinute", 0) >= 4, what="measured"
    )
    assert status["meanRunSeconds"] > 0


def test_a_drained_queue_loses_its_workers_while_tasks_wait(lab: Lab) -> None:
    lab.available(1)
    lab.task("last", "nap", payload={"seconds": 4})
    lab.phase("last", "Running")
    lab.change_queue(stopPolicy="HoldAndDrain")
    lab.condition("Ready", "True", "Held")
    names = lab.batch("waits", 3)
    assert lab.finished("last")["attempts"] == 1  # its worker stayed to the end
    status = lab.queue_status(lambda status: status.get("desiredReplicas") == 0, what="drained")
    assert "drained by stopPolicy HoldAndDrain" in status["scaling"]
    assert status["pending"] == 3
    assert conditions(status)["WorkersAvailable"]["reason"] == "ScaledToZero"
    lab.available(0)
    lab.change_queue(stopPolicy="None")
    for ended in lab.all_finished(names):
        assert ended["phase"] == "Succeeded"
