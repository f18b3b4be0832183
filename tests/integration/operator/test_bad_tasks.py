"""Tasks that cannot run as they are: each says why, and goes on when the cause is mended."""

import pytest

from tests.e2e.harness import Harness, true_conditions

pytestmark = pytest.mark.cluster

LATER = "from taskqueue import task\n@task\ndef later(payload):\n    return {'came': 'later'}\n"


def test_a_task_may_come_before_its_queue(harness: Harness) -> None:
    """The first test of the module: it makes the queue that the others use."""
    harness.task("early")
    status = harness.phase("early", "Blocked")
    assert status["reason"] == "QueueNotFound"
    assert status["message"] == (
        f"spec.queue: there is no TaskQueue {harness.namespace}/q: create it, "
        "and the Task continues"
    )
    assert true_conditions(status) == {"Reconciling"}
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    status = harness.finished("early")
    assert status["phase"] == "Succeeded"
    assert not {"reason", "message"} & status.keys()
    assert true_conditions(status) == {"Finished", "Complete"}


def test_a_payload_over_the_limit(harness: Harness) -> None:
    limit = 200 * 1024
    frame = len('{"text":""}')
    harness.task("fits", payload={"text": "x" * (limit - frame)}, handler="flaky")
    harness.task("too-large", payload={"text": "x" * (limit - frame + 1)})
    status = harness.finished("too-large")
    assert (status["phase"], status["reason"]) == ("Failed", "Invalid")
    assert status["message"].startswith(
        f"spec.payload has {limit + 1} bytes, the limit is {limit}: keep the data elsewhere"
    )
    assert status["attempts"] == 0
    assert true_conditions(status) == {"Finished", "Failed", "Stalled"}
    # It reached a worker: the handler misses its field.
    assert "KeyError" in harness.finished("fits")["message"]


def test_a_rollout_that_brings_the_handler_heals(harness: Harness) -> None:
    harness.task("patient", "later", retry={"maxAttempts": 1})
    status = harness.phase("patient", "Blocked")
    assert status["reason"] == "UnknownHandler"
    assert "later" in status["message"]
    assert "roll out workers that know it" in status["message"]
    harness.api.patch(harness.core("configmaps", "handlers"), {"data": {"newer.py": LATER}})
    container = {
        "name": "worker",
        "image": "taskqueue-operator:dev",
        "args": ["worker", "handlers", "newer"],
        "volumeMounts": [{"name": "handlers", "mountPath": "/handlers"}],
    }
    harness.change_queue(workers={"template": {"spec": {"containers": [container]}}})
    status = harness.finished("patient")
    assert (status["phase"], status["result"]) == ("Succeeded", {"came": "later"})
    assert status["attempts"] == 1
