"""The pool of workers follows the backlog: from zero, up to its limit, and back to zero."""

import itertools
import math
import re
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Harness
from tests.e2e.observations import Observations

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def deployments(harness: Harness) -> Iterator[Observations]:
    seen = Observations(harness.api, f"/apis/apps/v1/namespaces/{harness.namespace}/deployments")
    yield seen
    seen.close()


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness, deployments: Observations) -> None:
    harness.queue(workers={"concurrency": 1}, scaling={"target": {"tasksPerReplica": 1}})


def sizes(deployments: Observations, queue: str = "q") -> list[int]:
    found = [version["spec"]["replicas"] for version in deployments.versions(f"{queue}-worker")]
    return [size for size, before in zip(found, [None, *found], strict=False) if size != before]


def idle(harness: Harness) -> None:
    harness.queue_status(
        lambda status: (status.get("desiredReplicas"), status.get("replicas")) == (0, 0),
        what="at zero workers",
    )


def test_one_task_brings_one_worker_which_leaves_again(
    harness: Harness, deployments: Observations
) -> None:
    idle(harness)
    harness.task("lonely")
    assert harness.finished("lonely")["phase"] == "Succeeded"
    # The status is written once a second, and need not have seen the worker come and go.
    deployments.wait("q-worker", lambda raw: raw["spec"]["replicas"] == 0, what="at zero")
    idle(harness)
    assert harness.condition("WorkersAvailable", "True", "ScaledToZero")
    assert sizes(deployments) == [0, 1, 0]


def test_the_pool_grows_to_its_limit_and_no_further(
    harness: Harness, deployments: Observations
) -> None:
    names = harness.batch("many", 8, "nap", payload={"seconds": 0.7})
    capped = harness.queue_status(
        lambda status: status.get("desiredReplicas") == 2 and "capped" in status["scaling"],
        what="capped",
    )
    assert "capped by maxReplicas" in capped["scaling"]
    statuses = harness.all_finished(names)
    assert {status["phase"] for status in statuses} == {"Succeeded"}
    assert {status["attempts"] for status in statuses} == {1}
    assert max(sizes(deployments)) == 2
    idle(harness)


def test_kubectl_scale_rules_while_scaling_is_paused(harness: Harness) -> None:
    harness.change_queue(scaling={"paused": True})
    harness.condition("ScalingActive", "False", "Paused")
    waiting = harness.batch("paused", 3)
    harness.queue_status(lambda status: status.get("backlog") == 3, what="backlog 3")
    assert not harness.pods()
    harness.kubectl.ok(
        "scale", "-n", harness.namespace, "taskqueue.taskqueue.dev/q", "--replicas=1"
    )
    assert {status["phase"] for status in harness.all_finished(waiting)} == {"Succeeded"}
    harness.available(1)
    status = harness.queue_status(lambda status: status.get("replicas") == 1, what="at one worker")
    assert status["scaling"] == "1 = spec.workers.replicas, scaling is paused"


def test_a_deployment_resized_or_deleted_by_hand_is_put_back(harness: Harness) -> None:
    harness.change_queue(scaling={"paused": False, "minReplicas": 1})
    harness.available(1)
    harness.api.patch(harness.deployment(), {"spec": {"replicas": 0}})
    # The operator's own write comes after the hand's; a size of one alone could be from before.
    harness.until(
        lambda: harness.api.get(harness.deployment())["spec"]["replicas"] == 1, what="resized"
    )
    harness.available(1)

    before = harness.api.get(harness.deployment())["metadata"]["uid"]
    harness.api.request("DELETE", harness.deployment())
    harness.available(1)
    assert harness.api.get(harness.deployment())["metadata"]["uid"] != before
    harness.task("after-all")
    assert harness.finished("after-all")["phase"] == "Succeeded"


def test_the_backlog_is_to_be_gone_in_the_time_of_the_target(harness: Harness) -> None:
    target = {"type": "DrainTime", "seconds": 4}
    harness.queue("timed", workers={"concurrency": 1}, scaling={"target": target, "maxReplicas": 4})
    harness.all_finished(harness.batch("measured", 2, "nap", queue="timed", payload={"seconds": 1}))
    harness.queue_status(
        lambda status: status.get("meanRunSeconds", 0) >= 1, "timed", what="with a run time"
    )
    names = harness.batch("timed", 8, "nap", queue="timed", payload={"seconds": 1})
    formula = re.compile(r"^(\d+) = ceil\((\d+) backlog x ([\d.]+) s / \(1 slot x 4 s\)\)(.*)")
    seen = harness.queues.wait(
        "timed",
        lambda queue: bool(
            (found := formula.match(queue["status"].get("scaling", ""))) and int(found[2]) > 4
        ),
        what="explained by the run time",
        since=0,
    )
    found = formula.match(seen["status"]["scaling"])
    assert found
    size, backlog, mean = int(found[1]), int(found[2]), float(found[3])
    assert size == min(math.ceil(round(backlog * mean / 4, 6)), 4)
    assert ("capped by maxReplicas" in found[4]) == (backlog * mean / 4 > 4)
    assert {status["phase"] for status in harness.all_finished(names)} == {"Succeeded"}


def test_a_pool_grows_in_steps_when_it_is_told_to(
    harness: Harness, deployments: Observations
) -> None:
    harness.queue(
        "stepped",
        workers={"concurrency": 1},
        scaling={
            "target": {"tasksPerReplica": 1},
            "maxReplicas": 3,
            "scaleUp": {"maxReplicasPerStep": 1},
        },
    )
    names = harness.batch("stepped", 6, "nap", queue="stepped", payload={"seconds": 3})
    assert {status["phase"] for status in harness.all_finished(names)} == {"Succeeded"}
    grown = sizes(deployments, "stepped")
    assert max(grown) == 3
    steps = [after - before for before, after in itertools.pairwise(grown)]
    assert max(steps) == 1, grown
