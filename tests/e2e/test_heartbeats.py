"""Workers as the operator knows them by their heartbeats, and what it learns of their attempts."""

from __future__ import annotations

import copy
import re

import pytest

from taskqueue.limits import WORKER_LOST_SECONDS
from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, TEMPLATE, Harness

pytestmark = pytest.mark.cluster

#: A handler that tells how far it is, fails after a while, and has nothing to do when tried again.
_REPORTING = """
import time
from taskqueue import task

@task
def resize(payload, ctx):
    if ctx.attempt == 1:
        ctx.progress(40, "resizing")
        time.sleep(payload["seconds"])
        raise OSError("the disk is full")
"""


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness) -> None:
    harness.create_core("configmaps", "reporting", data={"reporting.py": _REPORTING})
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["args"] = ["worker", "reporting"]
    template["spec"]["volumes"][0]["configMap"]["name"] = "reporting"
    harness.queue(scaling={"minReplicas": 2})
    harness.queue("reporting", scaling={"minReplicas": 1}, workers={"template": template})
    harness.available(2)
    harness.available(1, "reporting")


def pods_told(harness: Harness, queue: str = "q") -> list[str]:
    """Return the names of the workers of a TaskQueue as its status has them now."""
    status = harness.api.get(harness.path("taskqueues", queue)).get("status", {})
    return [worker["pod"] for worker in status.get("workers", ())]


def names(pods: list[Body]) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in pods)


def lost(harness: Harness, pod: str) -> bool:
    """Tell whether the operator has said that a worker was lost."""
    said = [line for line in harness.operator_log(-1).splitlines() if pod in line]
    return any("worker.lost" in line for line in said)


def test_the_status_has_all_workers_with_what_they_can_do(harness: Harness) -> None:
    status = harness.queue_status(
        lambda status: len(status.get("workers", ())) == 2, what="with two workers"
    )
    pods = sorted(harness.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    for worker, pod in zip(status["workers"], pods, strict=True):
        assert worker["pod"] == pod["metadata"]["name"]
        assert worker["node"] == pod["spec"]["nodeName"]
        assert worker["slots"] == 4
        assert worker["cpus"] >= 1
        assert {"echo", "flaky", "nap"} <= set(worker["handlers"])
        assert worker["handlers"] == sorted(worker["handlers"])


def test_the_metrics_count_them(harness: Harness) -> None:
    def figures() -> list[tuple[str, str]]:
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{harness.leader()}"
        labels = f'{{namespace="{harness.namespace}",queue="q"}}'
        found = harness.api.text(f"{path}:8080/proxy/metrics")
        return re.findall(rf"^(taskqueue_worker.*?){re.escape(labels)} (\S+)$", found, re.MULTILINE)

    expected = [("taskqueue_workers", "2.0"), ("taskqueue_worker_slots", "8.0")]
    harness.until(lambda: figures() == expected, what=f"{expected}")


def test_progress_is_in_the_status_and_goes_with_the_attempt(harness: Harness) -> None:
    retry = {"maxAttempts": 2, "backoff": {"initialSeconds": 4}}
    harness.task("told", "resize", queue="reporting", payload={"seconds": 15}, retry=retry)
    seen = harness.tasks.wait(
        "told", lambda task: "progress" in task["status"], what="with progress"
    )
    assert seen["status"]["progress"] == {"percent": 40, "message": "resizing"}
    assert seen["status"]["phase"] == "Running"
    assert "progress" not in harness.phase("told", "Retrying")
    status = harness.finished("told")
    assert status["phase"] == "Succeeded"
    assert "progress" not in status


def test_a_worker_that_is_scaled_away_says_good_bye(harness: Harness) -> None:
    before = names(harness.pods())
    harness.until(lambda: pods_told(harness) == before, what=f"with {before}")
    harness.change_queue(scaling={"minReplicas": 1})
    harness.until(lambda: len(harness.pods()) == 1, what="with one pod")
    left = names(harness.pods())
    harness.until(lambda: pods_told(harness) == left, what=f"without the other than {left}")
    (gone,) = set(before) - set(left)
    assert not lost(harness, gone)


def test_a_killed_one_is_missed(harness: Harness) -> None:
    (pod,) = pods_told(harness)
    harness.kill(pod)
    harness.until(
        lambda: pod not in pods_told(harness),
        what=f"without {pod}",
        seconds=WORKER_LOST_SECONDS + 15,
    )
    assert lost(harness, pod)
    harness.available(1)
    harness.until(
        lambda: pods_told(harness) == names(harness.pods()), what="with the one that replaces it"
    )
