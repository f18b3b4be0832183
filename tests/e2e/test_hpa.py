"""Another scaler owns the size: a HorizontalPodAutoscaler, by the TaskQueue's scale subresource.

There are no metrics in the cluster, and none are needed: what an autoscaler holds in any case are
its own limits.
"""

from __future__ import annotations

import pytest

from tests.e2e.gates import Gates, template
from tests.e2e.harness import Harness, conditions
from tests.e2e.pod_removals import PodRemovals, names_of

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness, gates: Gates, pod_removals: PodRemovals) -> None:
    # At zero an autoscaler takes itself for switched off.
    harness.queue(
        workers={"concurrency": 1, "replicas": 1, "template": template()},
        scaling={"paused": True},
    )
    harness.available(1)


def path(harness: Harness, *parts: str) -> str:
    return "/".join(
        [
            f"/apis/autoscaling/v2/namespaces/{harness.namespace}/horizontalpodautoscalers",
            *parts,
        ]
    )


def test_it_grows_to_what_the_autoscaler_wants_at_least(harness: Harness) -> None:
    target = {"apiVersion": "taskqueue.dev/v1alpha1", "kind": "TaskQueue", "name": "q"}
    body = {
        "metadata": {"name": "q"},
        "spec": {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 4},
    }
    harness.api.request("POST", path(harness), body)
    harness.available(3, seconds=90)
    queue = harness.api.get(harness.path("taskqueues", "q"))
    assert queue["spec"]["workers"]["replicas"] == 3
    status = harness.queue_status(
        lambda status: status.get("replicas") == 3, what="at three workers"
    )
    assert conditions(status)["ScalingActive"]["reason"] == "Paused"
    assert status["selector"] == "taskqueue.dev/queue=q"


def test_it_shrinks_to_what_the_autoscaler_wants_at_most_when_the_busy_are_done(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    names = gates.behind("busy", 2)
    busy = {harness.phase(name, "Running")["worker"] for name in names}
    harness.api.patch(path(harness, "q"), {"spec": {"minReplicas": 1, "maxReplicas": 1}})
    harness.until(
        lambda: names_of(harness.pods()) == busy, what="only the busy ones are left", seconds=90
    )
    gates.open("busy")
    harness.all_finished(names)
    harness.available(1)
    pod_removals.assert_unharmed(names)
