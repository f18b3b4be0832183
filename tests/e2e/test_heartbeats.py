"""Workers as the operator knows them by their heartbeats, and what it learns of their attempts."""

from __future__ import annotations

import copy
import re

import pytest

from taskqueue.controller.pool.worker_registry import LOST_SECONDS
from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, TEMPLATE, Lab

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
def queues(lab: Lab) -> None:
    lab.create_core("configmaps", "reporting", data={"reporting.py": _REPORTING})
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["args"] = ["worker", "reporting"]
    template["spec"]["volumes"][0]["configMap"]["name"] = "reporting"
    lab.queue(scaling={"minReplicas": 2})
    lab.queue("reporting", scaling={"minReplicas": 1}, workers={"template": template})
    lab.available(2)
    lab.available(1, "reporting")


def pods_told(lab: Lab, queue: str = "q") -> list[str]:
    """Return the names of the workers of a TaskQueue as its status has them now."""
    status = lab.api.get(lab.path("taskqueues", queue)).get("status", {})
    return [worker["pod"] for worker in status.get("workers", ())]


def names(pods: list[Body]) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in pods)


def lost(lab: Lab, pod: str) -> bool:
    """Tell whether the operator has said that a worker was lost."""
    said = [line for line in lab.operator_log(-1).splitlines() if pod in line]
    return any("worker.lost" in line for line in said)


def test_the_status_has_all_workers_with_what_they_can_do(lab: Lab) -> None:
    status = lab.queue_status(
        lambda status: len(status.get("workers", ())) == 2, what="with two workers"
    )
    pods = sorted(lab.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    for worker, pod in zip(status["workers"], pods, strict=True):
        assert worker["pod"] == pod["metadata"]["name"]
        assert worker["node"] == pod["spec"]["nodeName"]
        assert worker["slots"] == 4
        assert worker["cpus"] >= 1
        assert {"echo", "flaky", "nap"} <= set(worker["handlers"])
        assert worker["handlers"] == sorted(worker["handlers"])


def test_the_metrics_count_them(lab: Lab) -> None:
    def figures() -> list[tuple[str, str]]:
        (pod,) = lab.operator_pods()
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod['metadata']['name']}"
        labels = f'{{namespace="{lab.namespace}",queue="q"}}'
        found = lab.api.text(f"{path}:8080/proxy/metrics")
        return re.findall(rf"^(taskqueue_worker.*?){re.escape(labels)} (\S+)$", found, re.MULTILINE)

    expected = [("taskqueue_workers", "2.0"), ("taskqueue_worker_slots", "8.0")]
    lab.until(lambda: figures() == expected, what=f"{expected}")


def test_progress_is_in_the_status_and_goes_with_the_attempt(lab: Lab) -> None:
    retry = {"maxAttempts": 2, "backoff": {"initialSeconds": 4}}
    lab.task("told", "resize", queue="reporting", payload={"seconds": 15}, retry=retry)
    seen = lab.tasks.wait("told", lambda task: "progress" in task["status"], what="with progress")
    assert seen["status"]["progress"] == {"percent": 40, "message": "resizing"}
    assert seen["status"]["phase"] == "Running"
    assert "progress" not in lab.phase("told", "Retrying")
    status = lab.finished("told")
    assert status["phase"] == "Succeeded"
    assert "progress" not in status


def test_a_worker_that_is_scaled_away_says_good_bye(lab: Lab) -> None:
    before = names(lab.pods())
    lab.until(lambda: pods_told(lab) == before, what=f"with {before}")
    lab.change_queue(scaling={"minReplicas": 1})
    lab.until(lambda: len(lab.pods()) == 1, what="with one pod")
    left = names(lab.pods())
    lab.until(lambda: pods_told(lab) == left, what=f"without the other than {left}")
    (gone,) = set(before) - set(left)
    assert not lost(lab, gone)


def test_a_killed_one_is_missed(lab: Lab) -> None:
    (pod,) = pods_told(lab)
    lab.kill(pod)
    lab.until(lambda: pod not in pods_told(lab), what=f"without {pod}", seconds=LOST_SECONDS + 15)
    assert lost(lab, pod)
    lab.available(1)
    lab.until(lambda: pods_told(lab) == names(lab.pods()), what="with the one that replaces it")


def test_what_was_deleted_while_there_was_no_operator_is_stopped(lab: Lab) -> None:
    lab.task("forsaken", "watch", payload={"seconds": 600})
    assert lab.phase("forsaken", "Running")["worker"] == names(lab.pods())[0]
    lab.kill_operator()
    lab.delete_task("forsaken")
    lab.tasks.wait_gone("forsaken")
    lab.until(
        lambda: [run.ended is not None for run in lab.runs()][-1:] == [True],
        what="stopped",
        seconds=90,
    )
    (run,) = lab.runs()
    assert run.ended is not None
    assert (run.ended - run.began).total_seconds() < 600
