"""Two operators as shipped: one leads, and the other takes over, however the first one is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR, OPERATOR_NAMESPACE, Harness
from tests.faults.processes import operator

pytestmark = pytest.mark.cluster

WINDOW = 8
WAITING = 40

_POLICY = f"/apis/policy/v1/namespaces/{OPERATOR_NAMESPACE}/poddisruptionbudgets/{OPERATOR}"
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases"
_SCHEMA = f"/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/{OPERATOR}-lease"


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(dispatch={"maxPublished": WINDOW}, scaling={"minReplicas": 1, "maxReplicas": 1})
    harness.available(1)
    both_ready(harness)


def both_ready(harness: Harness) -> None:
    deployment = f"/apis/apps/v1/namespaces/{OPERATOR_NAMESPACE}/deployments/{OPERATOR}"

    def ready() -> bool:
        status = harness.api.get(deployment)["status"]
        return (status.get("readyReplicas"), status.get("replicas")) == (2, 2)

    harness.until(ready, what="both operators ready")


def standby(harness: Harness) -> Body:
    """Return the pod that does not lead."""
    leader = harness.leader()
    (other,) = [pod for pod in harness.operator_pods() if pod["metadata"]["name"] != leader]
    return other


def restarts(pod: Body) -> int:
    return sum(one["restartCount"] for one in pod["status"]["containerStatuses"])


def test_a_drain_takes_one_operator_at_a_time(harness: Harness) -> None:
    def allowed() -> tuple[int, int]:
        status = harness.api.get(_POLICY)["status"]
        return status["currentHealthy"], status["disruptionsAllowed"]

    harness.until(lambda: allowed() == (2, 1), what="two healthy ones, one of which may go")


def test_requests_for_the_lease_have_a_flow_schema_of_their_own(harness: Harness) -> None:
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
    uid = harness.api.get(_SCHEMA)["metadata"]["uid"]
    header = "X-Kubernetes-PF-FlowSchema-UID"
    lease = harness.api.headers(f"{_LEASES}/{OPERATOR}", user=account)
    tasks = harness.api.headers(f"{harness.path('tasks')}?limit=1", user=account)
    assert lease[header] == uid
    assert tasks[header] != uid


def load(harness: Harness, prefix: str) -> list[str]:
    """Have Tasks run and wait; return their names."""
    names = harness.batch(prefix, WAITING, "nap", payload={"seconds": 0.3})
    harness.finished(names[0])
    return names


def assert_taken_over(harness: Harness, standby: Body, names: list[str]) -> None:
    """Fail unless the standby leads, and did what there was to do."""
    led_by = standby["metadata"]["name"]
    harness.until(lambda: harness.leader() == led_by, what=f"led by {led_by}")
    statuses = harness.all_finished(names)
    assert [(one["phase"], one["attempts"]) for one in statuses] == [("Succeeded", 1)] * WAITING
    uids = {harness.tasks.versions(name)[-1]["metadata"]["uid"] for name in names}
    runs = [run for run in harness.runs() if run.uid in uids]
    assert len(runs) - WAITING <= WINDOW
    (now,) = [pod for pod in harness.operator_pods() if pod["metadata"]["name"] == led_by]
    assert restarts(now) == restarts(standby)


def test_a_standby_takes_over_from_a_leader_that_is_stopped(harness: Harness) -> None:
    both_ready(harness)
    leader, other = harness.leader(), standby(harness)
    names = load(harness, "stopped")
    harness.api.request("DELETE", f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{leader}")
    assert_taken_over(harness, other, names)


def test_a_standby_takes_over_from_a_leader_that_is_killed(harness: Harness) -> None:
    both_ready(harness)
    other = standby(harness)
    names = load(harness, "killed")
    harness.kill_operator()
    assert_taken_over(harness, other, names)


def test_a_standby_takes_over_from_a_leader_that_is_paused(harness: Harness) -> None:
    both_ready(harness)
    leader, other = harness.leader(), standby(harness)
    (before,) = [pod for pod in harness.operator_pods() if pod["metadata"]["name"] == leader]
    names = load(harness, "paused")
    with harness.processes.stopped(replace(operator(OPERATOR_NAMESPACE), pod=leader)):
        assert_taken_over(harness, other, names)

    def has_restarted() -> bool:
        found = [pod for pod in harness.operator_pods() if pod["metadata"]["name"] == leader]
        return bool(found) and restarts(found[0]) > restarts(before)

    harness.until(has_restarted, what="the paused operator started again")
    both_ready(harness)
    assert harness.leader() == other["metadata"]["name"]
    harness.assert_ends_are_final()
