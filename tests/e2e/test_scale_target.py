"""Workers that somebody else deployed, scaled by spec.workers.scaleTargetRef.

Their pods get the environment by hand, as docs/reference/message-contract.md has it.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.gates import Gates, template
from tests.e2e.harness import BROKER_HOST, Harness, conditions, merged
from tests.e2e.pod_removals import PodRemovals, names_of

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness, gates: Gates, pod_removals: PodRemovals) -> None:
    workload(harness, "Deployment", "mine")
    workload(harness, "StatefulSet", "ranked", serviceName="ranked", podManagementPolicy="Parallel")
    for kind, name in (("Deployment", "mine"), ("StatefulSet", "ranked"), ("Deployment", "lost")):
        harness.queue(
            name,
            workers={
                "concurrency": 1,
                "template": None,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": name},
            },
            scaling={"target": {"tasksPerReplica": 1}, "maxReplicas": 2},
        )


def workload(harness: Harness, kind: str, name: str, **spec: Any) -> None:
    """Deploy workers of TaskQueue ``name`` as its users would; none to begin with."""
    labels = {"app": name}
    values = {
        "TASKQUEUE_NAMESPACE": harness.namespace,
        "TASKQUEUE_QUEUE": name,
        "TASKQUEUE_CONCURRENCY": "1",
        "TASKQUEUE_GRACE_SECONDS": "1",
        "TASKQUEUE_BROKER_HOST": BROKER_HOST,
    }
    env: list[Body] = [{"name": key, "value": value} for key, value in values.items()]
    env += [
        {
            "name": f"TASKQUEUE_BROKER_{key.upper()}",
            "valueFrom": {"secretKeyRef": {"name": "rabbit", "key": key}},
        }
        for key in ("username", "password")
    ]
    env.append({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    pod = merged(template(env=env), {"metadata": {"labels": labels}})
    body = {
        "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": pod,
            **spec,
        },
    }
    harness.api.request("POST", workloads(harness, kind), body)


def workloads(harness: Harness, kind: str, *parts: str) -> str:
    return "/".join([f"/apis/apps/v1/namespaces/{harness.namespace}/{kind.lower()}s", *parts])


def pods(harness: Harness, name: str) -> set[str]:
    """Return the workload's pods that are not on their way out."""
    found = harness.api.get(harness.core("pods"), labelSelector=f"app={name}")
    return names_of(pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"])


def ready_replicas(harness: Harness, name: str) -> int:
    """Return how many pods of a Deployment are ready."""
    deployment = harness.api.get(workloads(harness, "Deployment", name))
    return int(deployment["status"].get("readyReplicas", 0))


def pods_are(harness: Harness, name: str, expected: set[str]) -> None:
    harness.until(lambda: pods(harness, name) == expected, what=f"the pods are {sorted(expected)}")


def test_a_deployment_grows_from_zero_and_shrinks_around_the_busy(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    early, late = gates.behind("early", 1, queue="mine"), gates.behind("late", 1, queue="mine")
    ends = harness.phase(early[0], "Running")["worker"]
    stays = harness.phase(late[0], "Running")["worker"]
    status = harness.queue_status(
        lambda status: (status.get("desiredReplicas"), status.get("replicas")) == (2, 2),
        "mine",
        what="at two workers",
    )
    assert conditions(status)["ScalingActive"]["reason"] == "Following"
    # Of a pod that is ready and one that is not yet, a Deployment always removes the latter.
    harness.until(lambda: ready_replicas(harness, "mine") == 2, what="both ready")
    gates.open("early")
    harness.all_finished(early)
    pods_are(harness, "mine", {stays})
    harness.until(lambda: pod_removals.was_removed(ends), what=f"{ends} removed")
    gates.open("late")
    harness.all_finished(late)
    pods_are(harness, "mine", set())
    pod_removals.assert_unharmed(early + late)
    harness.queue_status(lambda status: status.get("replicas") == 0, "mine", what="at zero")


def test_a_stateful_set_keeps_its_highest_pod_while_that_works(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    each = [gates.behind(f"ranked-{number}", 1, queue="ranked") for number in range(2)]
    by_pod = {harness.phase(name, "Running")["worker"]: name for (name,) in each}
    assert set(by_pod) == {"ranked-0", "ranked-1"}
    lower, higher = by_pod["ranked-0"], by_pod["ranked-1"]
    gates.open(lower.rpartition("-")[0])
    harness.all_finished([lower])
    # Of two that work or worked, the one that ends first is not the one that may go.
    harness.queue_status(
        lambda status: (status.get("desiredReplicas"), status.get("running")) == (1, 1),
        "ranked",
        what="with one worker wanted",
    )
    assert not pod_removals.was_removed("ranked-1")
    gates.open(higher.rpartition("-")[0])
    harness.all_finished([higher])
    pods_are(harness, "ranked", set())
    pod_removals.assert_unharmed([lower, higher])


def test_pods_of_a_stateful_set_that_were_drained_work_again_under_their_names(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    names = gates.behind("reborn", 2, queue="ranked")
    assert {harness.phase(name, "Running")["worker"] for name in names} == {"ranked-0", "ranked-1"}
    gates.open("reborn")
    harness.all_finished(names)
    pods_are(harness, "ranked", set())
    pod_removals.assert_unharmed(names)


def test_a_target_that_is_not_there_is_said_and_found_when_it_comes(harness: Harness) -> None:
    harness.task("lost", queue="lost")
    status = harness.queue_status(
        lambda status: conditions(status).get("WorkersAvailable", {}).get("status") == "False",
        "lost",
        what="without a target",
    )
    condition = conditions(status)["WorkersAvailable"]
    assert "lost" in condition["message"], condition
    workload(harness, "Deployment", "lost")
    assert harness.finished("lost")["phase"] == "Succeeded"
