"""RabbitMQ starts again: with its data, and without. Runs last: every other test needs it.

A container that starts again keeps the pod's volume; a pod made anew has lost every queue.
"""

from collections.abc import Callable

import pytest

from tests.e2e.api import Refused
from tests.e2e.batches import create, ended, status_of
from tests.e2e.harness import Harness

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

BROKER = "/api/v1/namespaces/rabbitmq/pods/rabbitmq-0"
RUNNING, WAITING, RETRYING = 2, 12, 3


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(dispatch={"maxPublished": 8}, scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)


def start_anew(harness: Harness) -> None:
    """Have another container in the same pod."""

    def restarts() -> int:
        status = harness.api.get(BROKER)["status"]["containerStatuses"][0]
        return int(status["restartCount"]) if status["ready"] else -1

    before = restarts()
    end = "kill -9 $(pgrep -f beam.smp) || kill -9 1"
    harness.kubectl("exec", "-n", "rabbitmq", "rabbitmq-0", "--", "sh", "-c", end)
    harness.until(lambda: restarts() > before, what="started again", seconds=120)


def made_anew(harness: Harness) -> None:
    """Have another pod, with an empty volume."""
    former = harness.api.get(BROKER)["metadata"]["uid"]
    harness.kill("rabbitmq-0", namespace="rabbitmq")

    def ready() -> bool:
        try:
            pod = harness.api.get(BROKER)
        except Refused:
            return False
        statuses = pod["status"].get("containerStatuses", [])
        is_ready = bool(statuses) and statuses[0]["ready"]
        return is_ready and pod["metadata"]["uid"] != former

    harness.until(ready, what="made anew", seconds=120)


@pytest.mark.parametrize("again", [start_anew, made_anew], ids=["with its data", "without"])
def test_every_unfinished_task_ends(harness: Harness, again: Callable[[Harness], None]) -> None:
    prefix = again.__name__.replace("_", "-")
    retry = {"backoff": {"initialSeconds": 5}}
    names = harness.batch(
        f"{prefix}-flaky", RETRYING, "flaky", payload={"failures": 1}, retry=retry
    )
    harness.phase(names[-1], "Retrying")
    running = harness.batch(f"{prefix}-running", RUNNING, "nap", payload={"seconds": 6})
    names += running + harness.batch(f"{prefix}-waiting", WAITING, "nap", payload={"seconds": 0.5})
    for name in running:
        harness.phase(name, "Running")
    operators = [pod["metadata"]["uid"] for pod in harness.operator_pods()]
    again(harness)
    statuses = dict(zip(names, harness.all_finished(names, seconds=150), strict=True))
    for name, status in statuses.items():
        attempts = 2 if "flaky" in name else 1
        assert (status["phase"], status["attempts"]) == ("Succeeded", attempts), name
    harness.ready()
    assert [pod["metadata"]["uid"] for pod in harness.operator_pods()] == operators
    harness.all_counted(len(harness.tasks.names()))


@pytest.mark.parametrize("again", [start_anew, made_anew], ids=["with its data", "without"])
def test_every_item_of_a_batch_ends(harness: Harness, again: Callable[[Harness], None]) -> None:
    name = "batch-" + again.__name__.replace("_", "-")
    create(harness, name, "nap", items=[{"seconds": 0.2}] * 400)
    harness.until(lambda: status_of(harness, name).get("succeeded", 0) >= 20, what="items recorded")
    again(harness)
    status = ended(harness, name, seconds=240)
    assert (status["phase"], status["succeeded"]) == ("Succeeded", 400)
