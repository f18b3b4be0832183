"""RabbitMQ starts again: with its data, and without. Runs last: every other test needs it.

A container that starts again keeps the pod's volume; a pod made anew has lost every queue.
"""

from collections.abc import Callable

import pytest

from tests.e2e.api import Refused
from tests.e2e.harness import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

BROKER = "/api/v1/namespaces/rabbitmq/pods/rabbitmq-0"
RUNNING, WAITING, RETRYING = 2, 12, 3


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab) -> None:
    lab.queue(dispatch={"maxPublished": 8}, scaling={"minReplicas": 1, "maxReplicas": 1})
    lab.available(1)


def start_anew(lab: Lab) -> None:
    """Have another container in the same pod."""

    def restarts() -> int:
        status = lab.api.get(BROKER)["status"]["containerStatuses"][0]
        return int(status["restartCount"]) if status["ready"] else -1

    before = restarts()
    end = "kill -9 $(pgrep -f beam.smp) || kill -9 1"
    lab.kubectl("exec", "-n", "rabbitmq", "rabbitmq-0", "--", "sh", "-c", end)
    lab.until(lambda: restarts() > before, what="started again", seconds=120)


def made_anew(lab: Lab) -> None:
    """Have another pod, with an empty volume."""
    former = lab.api.get(BROKER)["metadata"]["uid"]
    lab.kill("rabbitmq-0", namespace="rabbitmq")

    def ready() -> bool:
        try:
            pod = lab.api.get(BROKER)
        except Refused:
            return False
        statuses = pod["status"].get("containerStatuses", [])
        is_ready = bool(statuses) and statuses[0]["ready"]
        return is_ready and pod["metadata"]["uid"] != former

    lab.until(ready, what="made anew", seconds=120)


@pytest.mark.parametrize("again", [start_anew, made_anew], ids=["with its data", "without"])
def test_every_unfinished_task_ends(lab: Lab, again: Callable[[Lab], None]) -> None:
    prefix = again.__name__.replace("_", "-")
    retry = {"backoff": {"initialSeconds": 5}}
    names = lab.batch(f"{prefix}-flaky", RETRYING, "flaky", payload={"failures": 1}, retry=retry)
    lab.phase(names[-1], "Retrying")
    running = lab.batch(f"{prefix}-running", RUNNING, "nap", payload={"seconds": 6})
    names += running + lab.batch(f"{prefix}-waiting", WAITING, "nap", payload={"seconds": 0.5})
    for name in running:
        lab.phase(name, "Running")
    operators = [pod["metadata"]["uid"] for pod in lab.operator_pods()]
    again(lab)
    statuses = dict(zip(names, lab.all_finished(names, seconds=150), strict=True))
    for name, status in statuses.items():
        attempts = 2 if "flaky" in name else 1
        assert (status["phase"], status["attempts"]) == ("Succeeded", attempts), name
    lab.ready()
    assert [pod["metadata"]["uid"] for pod in lab.operator_pods()] == operators
    lab.all_counted(len(lab.tasks.names()))
