"""Faults of the operator in the cluster: its watches, and its clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.conftest import Cluster, Kubectl
from tests.faults.api_faults import ErrorEvent
from tests.faults.api_proxy import open_api_proxy
from tests.faults.clock import PodClock, pod_addition
from tests.faults.relay import address_towards
from tests.parallel import assert_exclusive

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

NAMESPACE = "taskqueue-system"
OPERATOR = "taskqueue-operator"
TASKS = r"^/apis/taskqueue\.dev/v1alpha1/tasks$"
TASKQUEUES = r"^/apis/taskqueue\.dev/v1alpha1/taskqueues$"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within 60 s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def one_operator(kubectl: Kubectl) -> Iterator[None]:
    """One operator for what is counted here; at the end as many as before."""
    assert_exclusive("operator")
    deployment = ("-n", NAMESPACE, f"deployment/{OPERATOR}")
    shipped = kubectl.ok("get", *deployment, "-o", "jsonpath={.spec.replicas}")
    kubectl.ok("scale", *deployment, "--replicas=1")
    until(lambda: len(operator_pods(kubectl)) == 1, "one operator is left")
    yield
    kubectl.ok("scale", *deployment, f"--replicas={shipped}")
    kubectl.ok("rollout", "status", *deployment, "--timeout=90s")


def operator_pods(kubectl: Kubectl) -> list[str]:
    listed = json.loads(kubectl.ok("get", "pods", "-n", NAMESPACE, "-o", "json"))
    return [
        pod["metadata"]["name"]
        for pod in listed["items"]
        if "deletionTimestamp" not in pod["metadata"]
    ]


def operator_pod(kubectl: Kubectl) -> str:
    (name,) = operator_pods(kubectl)
    return name


def test_operator_lists_tasks_again_when_its_watch_has_expired(
    cluster: Cluster, kubectl: Kubectl, node_address: str
) -> None:
    assert_exclusive("operator")
    address = address_towards(node_address)
    with (
        open_api_proxy(cluster.kubeconfig, address=address, port=443, tls=True) as proxy,
        proxy.pod_addition().in_deployment(kubectl, NAMESPACE, OPERATOR),
    ):
        # kopf's watch as well as our own.
        until(lambda: proxy.count(path=TASKQUEUES, is_watch=True) == 1, "TaskQueues are watched")
        # Those of schedules have a watch of their own, by label.
        count = partial(proxy.count, path=TASKS, labels="")
        expire = partial(proxy.disturb_watches, ErrorEvent(410), path=TASKS, labels="")
        # Tasks are watched by the standby that it was at first, and from where that was.
        until(lambda: count(is_watch=True) >= 2, "Tasks are watched")
        lists = count(page=1)
        # A watch is counted when it is asked for, and open a little later.
        until(lambda: expire() == 1, "the watch has expired")
        # The finished ones are listed too, once, for their time to live.
        until(lambda: count(page=1) > lists, "Tasks are listed again")
        until(lambda: count(is_watch=True) >= 3, "Tasks are watched again")


def test_operator_stays_leader_while_its_clock_steps(kubectl: Kubectl) -> None:
    assert_exclusive("operator")
    with pod_addition().in_deployment(kubectl, NAMESPACE, OPERATOR):
        pod = operator_pod(kubectl)
        path = "{.spec.holderIdentity} {.spec.renewTime}"

        def lease() -> list[str]:
            got = ("get", "lease", OPERATOR, "-n", NAMESPACE, "-o", f"jsonpath={path}")
            return kubectl.ok(*got).split()

        until(lambda: lease()[0].startswith(pod), "the new pod leads")
        with PodClock(kubectl, NAMESPACE, pod).stepped(86_400):
            tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))
            # It has written the time of its own clock, and still leads.
            until(lambda: lease()[1].startswith(tomorrow), "the operator's clock stepped")
            assert lease()[0].startswith(pod)
