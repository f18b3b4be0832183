"""Processes of the cluster are killed and stopped by role."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from devcluster.placement import is_ready
from tests.e2e.harness import OPERATOR_NAMESPACE, Harness
from tests.faults.processes import (
    API_SERVER,
    CONTROL_PLANE_ROLES,
    KUBELET,
    NODE_ROLES,
    SCHEDULER,
    Processes,
    Role,
    operator,
    rabbitmq,
    whole_pod,
    worker,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def processes(harness: Harness) -> Iterator[Processes]:
    if not harness.processes.is_native:
        pytest.skip("the programs of the node can be reached in a native node only")
    yield harness.processes
    harness.until(lambda: _is_ready(harness), what="all nodes ready again", seconds=120)
    for namespace, name in (
        (OPERATOR_NAMESPACE, "deployment/taskqueue-operator"),
        ("rabbitmq", "statefulset/rabbitmq"),
    ):
        harness.kubectl.ok("rollout", "status", name, "-n", namespace, "--timeout=110s")


@pytest.fixture(scope="module")
def worker_role(harness: Harness) -> Role:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)
    return worker(harness.namespace, "q")


def _is_ready(harness: Harness) -> bool:
    try:
        return all(map(is_ready, harness.api.get("/api/v1/nodes")["items"]))
    except requests.RequestException:
        return False


def test_a_stopped_worker_finishes_its_task_once_it_goes_on(
    harness: Harness, worker_role: Role
) -> None:
    with harness.processes.stopped(worker_role):
        harness.task("waits")
        harness.phase("waits", "Pending")
        assert not harness.worker_log().count('"echo.ran"')
    assert harness.finished("waits")["phase"] == "Succeeded"


def test_a_killed_worker_is_started_again(harness: Harness, worker_role: Role) -> None:
    killed = harness.processes.kill(worker_role)
    assert harness.processes.wait(worker_role, other_than=killed)
    harness.task("after")
    assert harness.finished("after")["phase"] == "Succeeded"


def test_processes_are_killed_through_a_pod_where_the_node_is_not_native(
    harness: Harness, worker_role: Role
) -> None:
    through_pod = Processes(harness.api, harness.kubectl, harness.namespace, through_pod=True)
    (name,) = (one["metadata"]["name"] for one in harness.pods())
    before = through_pod.find(worker_role)
    with through_pod.stopped(worker_role) as stopped:
        assert stopped == before
    assert through_pod.kill(whole_pod(harness.namespace, name)) == before
    assert through_pod.wait(worker_role, other_than=before)


@pytest.mark.parametrize("role", [operator(), rabbitmq()], ids=lambda role: role.name)
def test_a_killed_server_in_a_pod_is_started_again(harness: Harness, role: Role) -> None:
    killed = harness.processes.kill(role)
    assert harness.processes.wait(role, other_than=killed)


@pytest.mark.parametrize("role", CONTROL_PLANE_ROLES, ids=lambda role: role.name)
def test_a_killed_program_of_the_control_plane_is_started_again(
    processes: Processes, role: Role
) -> None:
    (killed,) = processes.kill(role)
    (started,) = processes.wait(role, other_than=[killed])
    assert started.started > killed.started


@pytest.mark.parametrize("role", NODE_ROLES, ids=lambda role: role.name)
def test_a_killed_program_of_one_node_is_started_again(
    harness: Harness, processes: Processes, role: Role
) -> None:
    names = {one["metadata"]["name"] for one in harness.api.get("/api/v1/nodes")["items"]}
    assert {one.node for one in processes.find(role)} == names
    for name in names:
        others = [one for one in processes.find(role) if one.node != name]
        (killed,) = processes.kill(role.on(name))
        (started,) = processes.wait(role.on(name), other_than=[killed])
        assert killed.node == started.node == name
        assert started.started > killed.started
        assert [one for one in processes.find(role) if one.node != name] == others


def test_a_node_without_power_runs_nothing_until_it_has_it_again(processes: Processes) -> None:
    before = processes.find(KUBELET)
    control_plane, worker, *_ = sorted(one.node for one in before)
    with processes.node_down(worker):
        with pytest.raises(AssertionError, match=f"node '{worker}' has ended"):
            processes.find(KUBELET.on(worker))
        (running,) = processes.find(KUBELET.on(control_plane))
        assert running in before
    (started,) = processes.wait(KUBELET.on(worker))
    assert started not in before


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_stopped_api_server_answers_once_it_goes_on(
    harness: Harness, processes: Processes
) -> None:
    harness.until(lambda: _is_ready(harness), what="all nodes ready")
    url = f"{harness.api.server}/readyz"
    with processes.stopped(API_SERVER), pytest.raises(requests.Timeout):
        requests.get(url, verify=False, timeout=1)  # noqa: S501  # what is asked is no secret
    assert requests.get(url, verify=False, timeout=30).status_code == 200  # noqa: S501


def test_a_process_that_has_ended_is_not_hit(processes: Processes) -> None:
    killed = processes.kill(SCHEDULER)
    processes.wait(SCHEDULER, other_than=killed)
    with pytest.raises(AssertionError, match="has ended already"):
        processes.kill(killed)
