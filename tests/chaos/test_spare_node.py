"""The node that runs the workers is drained, and loses its power, while they run Tasks.

Workers prefer the cluster's spare node (`devcluster.placement`), where nothing else runs, and move
to the other when it is gone. A drain costs no attempt and not one repeated run. A lost node costs
what ran there just then: it runs again once the broker and Kubernetes have noticed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest

from devcluster.paths import DEFAULT_NAME, cache, locked
from devcluster.placement import SPARE_TAINT, is_ready
from tests.chaos.naps import (
    assert_no_attempt_failed,
    finished,
    repeated,
    steady_load,
    submit,
    wait_all_have_worked,
    wait_finished,
)
from tests.chaos.run_counter import RunCounter
from tests.conftest import Kubectl
from tests.e2e.api import Body
from tests.e2e.harness import TEMPLATE, Harness
from tests.e2e.observations import Observations

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

WORKERS, SLOTS = 3, 4

#: Of all attempts on a node: as many as its workers have slots.
AT_ONCE = WORKERS * SLOTS


@pytest.fixture(scope="module")
def spare_node(request: pytest.FixtureRequest, kubectl: Kubectl) -> Iterator[str]:
    """The name of the spare node, for one test run at a time."""
    nodes = json.loads(kubectl.ok("get", "nodes", "-o", "json"))["items"]
    spare = [
        one["metadata"]["name"]
        for one in nodes
        if SPARE_TAINT in {taint["key"] for taint in one["spec"].get("taints", ())}
    ]
    if not spare and request.config.getoption("cluster") == "current":
        pytest.skip(f"this cluster has no node with the taint {SPARE_TAINT}")
    with locked(cache() / "tests" / DEFAULT_NAME / "spare-node"):
        yield spare[0]
        kubectl.ok("uncordon", spare[0])


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness, spare_node: str) -> None:
    harness.queue(
        dispatch={"maxPublished": 64},
        scaling={"minReplicas": WORKERS, "maxReplicas": WORKERS},
        taskDefaults={"maxDeliveries": 10},
        workers={"concurrency": SLOTS, "template": template(spare_node)},
    )


@pytest.fixture(autouse=True)
def workers(harness: Harness, spare_node: str) -> set[str]:
    """The names of the workers, all of which are on the spare node."""
    return gather_workers(harness, spare_node)


@pytest.fixture
def run_counter(harness: Harness, workers: set[str]) -> Iterator[RunCounter]:
    run_counter = RunCounter(harness)
    run_counter.wait_followed(WORKERS)
    yield run_counter
    run_counter.close()


def template(spare_node: str) -> Body:
    """Return the template of pods that prefer a node, and are replaced soon when it is lost."""
    made = copy.deepcopy(TEMPLATE)
    is_spare = {"key": "kubernetes.io/hostname", "operator": "In", "values": [spare_node]}
    preference = {"weight": 100, "preference": {"matchExpressions": [is_spare]}}
    lost = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    made["spec"] |= {
        # Longer than any Task here runs.
        "terminationGracePeriodSeconds": 15,
        "affinity": {
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}
        },
        "tolerations": [
            {"key": SPARE_TAINT, "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", **lost},
            {"key": "node.kubernetes.io/not-ready", **lost},
        ],
    }
    return made


def gather_workers(harness: Harness, node: str) -> set[str]:
    """Have all workers on a node, and return their names."""
    harness.kubectl.ok("uncordon", node)
    harness.until(lambda: is_ready(get_node(harness, node)), what=f"{node} Ready", seconds=120)
    harness.available(WORKERS)
    for pod in harness.pods():
        if pod["spec"]["nodeName"] != node:
            harness.api.request("DELETE", harness.core("pods", pod["metadata"]["name"]))

    def are_there() -> bool:
        nodes = [pod["spec"].get("nodeName") for pod in harness.pods()]
        # One on its way out may take a Task until its signal reaches it.
        return nodes == [node] * WORKERS and len(names_of_pods(harness)) == WORKERS

    harness.until(are_there, what=f"all workers on {node}")
    harness.available(WORKERS)
    return {pod["metadata"]["name"] for pod in harness.pods()}


def get_node(harness: Harness, node: str) -> Body:
    return harness.api.get(f"/api/v1/nodes/{node}")


def test_a_drained_node(
    harness: Harness,
    spare_node: str,
    workers: set[str],
    run_counter: RunCounter,
    summary_lines: list[str],
) -> None:
    budgets = f"/apis/policy/v1/namespaces/{harness.namespace}/poddisruptionbudgets"
    seen = Observations(harness.api, budgets)
    selector = {"matchLabels": {"taskqueue.dev/queue": "q"}}
    spec = {"maxUnavailable": 1, "selector": selector}
    harness.api.request("POST", budgets, {"metadata": {"name": "workers"}, "spec": spec})
    seen.wait("workers", lambda one: one["status"]["currentHealthy"] == WORKERS, what="counted")
    before = len(seen.versions("workers"))
    with steady_load(harness, "drained", 3 * AT_ONCE, longest=3) as names:
        wait_all_have_worked(harness, names)
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=110s")
        drained = harness.kubectl("drain", spare_node, *options)
        assert drained.returncode == 0, drained.stderr
        harness.available(WORKERS)
        wait_all_have_worked(harness, names)
    seen.close()

    assert "violate the pod's disruption budget" in drained.stderr
    healthy = [one["status"]["currentHealthy"] for one in seen.versions("workers")[before:]]
    assert min(healthy) == WORKERS - 1, "one at a time"
    statuses = assert_no_attempt_failed(harness, names)
    assert workers < {status["worker"] for status in statuses}
    assert spare_node not in {pod["spec"]["nodeName"] for pod in harness.pods()}
    harness.all_counted(len(harness.tasks.names()))
    repeats = repeated(harness, run_counter, names)
    summary_lines.append(f"{len(names)} Tasks while {WORKERS} pods moved, {repeats} runs repeated")
    assert repeats == 0, "each had the time to end where it began"


def test_a_node_without_power(
    harness: Harness,
    spare_node: str,
    workers: set[str],
    run_counter: RunCounter,
    summary_lines: list[str],
) -> None:
    if not harness.processes.is_native:
        pytest.skip("a node can lose its power in a native cluster only")
    names = submit(harness, "lost", 8 * AT_ONCE, longest=3)
    wait_finished(harness, names, AT_ONCE)
    with harness.processes.node_down(spare_node):
        assert len(finished(harness, names)) < len(names)
        harness.until(
            lambda: not is_ready(get_node(harness, spare_node)), what="seen as lost", seconds=120
        )
        statuses = assert_no_attempt_failed(harness, names)
        assert not workers >= {status["worker"] for status in statuses}
        assert workers & {status["worker"] for status in statuses}
    repeats = repeated(harness, run_counter, names)
    summary_lines.append(f"{repeats} of {len(names)} Tasks ran once more after their node was lost")
    assert 0 < repeats <= AT_ONCE
    harness.all_counted(len(harness.tasks.names()))

    # The node is whole: what was there has ended, and it takes pods again.
    harness.until(
        lambda: not workers & names_of_pods(harness), what="rid of the lost pods", seconds=120
    )
    returned = gather_workers(harness, spare_node)
    harness.task("after", "nap", payload={"seconds": 0})
    assert harness.finished("after")["worker"] in returned


def names_of_pods(harness: Harness) -> set[str]:
    """Return the names of all pods of the namespace, those on their way out included."""
    return {pod["metadata"]["name"] for pod in harness.all_pods()}
