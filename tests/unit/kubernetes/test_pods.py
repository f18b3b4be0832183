from typing import Any

import pytest

from taskqueue.kubernetes.pods import COST_ANNOTATION, read_pod
from taskqueue.model.pod import Trouble

CREATED = "2026-01-02T03:04:05Z"
SECONDS = 1767323045.0


def raw(
    *, containers: list[dict[str, Any]] | None = None, metadata: Any = None, **status: Any
) -> dict[str, Any]:
    return {
        "metadata": {"name": "w-1", "uid": "u", "creationTimestamp": CREATED, **(metadata or {})},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "containerStatuses": containers or [], **status},
    }


def container(state: dict[str, Any], *, restarts: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": "worker", "state": state, "restartCount": restarts, **more}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def running(at: str = CREATED) -> dict[str, Any]:
    return {"running": {"startedAt": at}}


def test_read_running_pod() -> None:
    owners = [{"uid": "other"}, {"uid": "rs-1", "controller": True}]
    pod = read_pod(
        raw(
            metadata={"ownerReferences": owners, "annotations": {COST_ANNOTATION: "-7"}},
            containers=[
                container(running("2026-01-02T03:05:05Z"), restarts=2),
                container(running(), restarts=1),
            ],
            conditions=[{"type": "Ready", "status": "True"}],
        )
    )
    assert (pod.name, pod.uid, pod.owner, pod.phase) == ("w-1", "u", "rs-1", "Running")
    assert pod.ready
    assert pod.assigned
    assert pod.active
    assert (pod.cost, pod.created, pod.restarts) == (-7, SECONDS, 2)
    assert pod.running_since == SECONDS + 60  # the later: its process is the one to be heard of
    assert pod.ordinal == 1
    assert pod.trouble is None


def test_read_pod_without_a_status() -> None:
    pod = read_pod({"metadata": {"name": "w", "uid": "u"}})
    assert (pod.phase, pod.ready, pod.assigned, pod.started) == ("Pending", False, False, False)
    assert (pod.cost, pod.owner, pod.ordinal, pod.trouble) == (0, "", None, None)
    assert pod.active


def test_terminating_and_finished_pods_do_not_count() -> None:
    assert not read_pod(raw(metadata={"deletionTimestamp": CREATED})).active
    assert not read_pod(raw(phase="Succeeded")).active
    assert not read_pod(raw(phase="Failed")).active


@pytest.mark.parametrize("text", ["+1", "007", "-0", "1.5", "", " 1", "1_0", "2147483648"])
def test_invalid_deletion_costs_are_zero(text: str) -> None:
    assert read_pod(raw(metadata={"annotations": {COST_ANNOTATION: text}})).cost == 0


def test_lowest_deletion_cost_is_valid() -> None:
    pod = read_pod(raw(metadata={"annotations": {COST_ANNOTATION: "-2147483648"}}))
    assert pod.cost == -(2**31)


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_starting_pod_has_no_trouble(reason: str) -> None:
    assert read_pod(raw(phase="Pending", containers=[container(waiting(reason))])).trouble is None


@pytest.mark.parametrize(
    "reason",
    ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"],
)
def test_trouble_of_a_container_that_cannot_start(reason: str) -> None:
    pod = read_pod(raw(containers=[container(waiting(reason, "no such\n image"))]))
    assert pod.trouble == Trouble(reason, "container worker: no such image")
    assert not pod.started


def test_trouble_of_a_crash_loop_has_its_exit() -> None:
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    state = waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container")
    crashing = container(state, restarts=4, lastState=ended)
    assert read_pod(raw(containers=[crashing])).trouble == Trouble(
        "CrashLoopBackOff", "container worker ended with code 137 (OOMKilled), 4 times"
    )
    ended["terminated"] = {"exitCode": 2, "reason": "Error", "message": "no such\nfile"}
    assert read_pod(raw(containers=[crashing])).trouble == Trouble(
        "CrashLoopBackOff", "container worker ended with code 2: no such file, 4 times"
    )


def test_trouble_of_a_container_that_has_just_failed() -> None:
    ended = container({"terminated": {"exitCode": 1, "reason": "Error"}})
    assert read_pod(raw(containers=[ended])).trouble == Trouble(
        "Error", "container worker ended with code 1"
    )
    done = container({"terminated": {"exitCode": 0, "reason": "Completed"}})
    assert read_pod(raw(containers=[done])).trouble is None


def test_trouble_of_an_init_container_comes_first() -> None:
    init = {"name": "prepare", "state": waiting("ErrImagePull", "denied"), "restartCount": 0}
    pod = read_pod(
        raw(
            phase="Pending",
            initContainerStatuses=[init],
            containers=[container(waiting("PodInitializing"))],
        )
    )
    assert pod.trouble == Trouble("ErrImagePull", "init container prepare: denied")


def test_running_init_container_is_not_a_running_worker() -> None:
    init = {"name": "prepare", "state": running(), "restartCount": 0}
    pod = read_pod(raw(phase="Pending", initContainerStatuses=[init], containers=[]))
    assert not pod.started


def test_trouble_of_an_unschedulable_pod() -> None:
    refused = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient cpu.",
    }
    pod = raw(phase="Pending", conditions=[refused])
    del pod["spec"]["nodeName"]
    read = read_pod(pod)
    assert not read.assigned
    assert read.trouble == Trouble("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.")


def test_long_messages_are_truncated() -> None:
    trouble = read_pod(raw(containers=[container(waiting("ErrImagePull", "x" * 5000))])).trouble
    assert trouble is not None
    assert len(trouble.message) < 400
