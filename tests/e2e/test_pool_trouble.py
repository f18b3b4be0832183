"""Pools that cannot have the workers they want: it is said why, not made worse, and heals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from taskqueue.controller.pool.health import FIRST_PAUSE_SECONDS
from tests.e2e.api import Body
from tests.e2e.gates import Gates
from tests.e2e.gates import template as gated_template
from tests.e2e.harness import TEMPLATE, Harness, conditions
from tests.e2e.observations import Observations

pytestmark = pytest.mark.cluster

#: Nobody answers there, so that it is refused at once.
_NO_IMAGE = "127.0.0.1:1/taskqueue:none"

#: A pause is measured between two times in whole seconds, and begins a moment after the first.
_ROUNDED_SECONDS = 2.0

_PULL = {"ErrImagePull", "ImagePullBackOff"}
_WELL = {"Available", "ScaledToZero"}


def template(*, pod: Body | None = None, **container: Any) -> Body:
    changed = copy.deepcopy(TEMPLATE)
    changed["spec"]["containers"][0].update(container)
    changed["spec"].update(pod or {})
    return changed


@pytest.fixture(scope="module")
def deployments(harness: Harness) -> Iterator[Observations]:
    seen = Observations(harness.api, f"/apis/apps/v1/namespaces/{harness.namespace}/deployments")
    yield seen
    seen.close()


@pytest.fixture(scope="module")
def broken(harness: Harness, deployments: Observations) -> None:
    templates = {
        "pull": template(image=_NO_IMAGE),
        "crash": template(args=["worker", "no_such_module"]),
        "homeless": template(pod={"nodeSelector": {"taskqueue.dev/no-node": "here"}}),
    }
    for name, pod in templates.items():
        harness.queue(
            name,
            workers={"concurrency": 1, "template": pod},
            scaling={"target": {"tasksPerReplica": 1}, "maxReplicas": 6},
        )
        # Together: how long each takes to be seen is up to the kubelet.
        harness.batch(name, 2, queue=name)


def trouble(harness: Harness, queue: str, reasons: set[str], *, seconds: float = 90) -> Body:
    """Return the status of a TaskQueue whose workers are not available for one of these reasons."""

    def holds(status: Body) -> bool:
        found = conditions(status).get("WorkersAvailable", {})
        return found.get("status") == "False" and found.get("reason") in reasons

    return harness.queue_status(holds, queue, what=f"in trouble: {reasons}", seconds=seconds)


@pytest.mark.parametrize(
    ("queue", "reasons", "told"),
    [
        ("pull", _PULL, _NO_IMAGE),
        ("crash", {"CrashLoopBackOff"}, "ended with code"),
    ],
)
@pytest.mark.usefixtures("broken")
def test_a_failing_pool_does_not_grow_and_heals_when_its_template_is_mended(
    harness: Harness, deployments: Observations, queue: str, reasons: set[str], told: str
) -> None:
    status = trouble(harness, queue, reasons)
    message = conditions(status)["WorkersAvailable"]["message"]
    assert told in message
    assert any(pod["metadata"]["name"] in message for pod in harness.pods(queue)), message
    assert status["desiredReplicas"] == 2
    # More work changes nothing, for as long as it lasts.
    harness.batch(f"{queue}-more", 4, queue=queue)
    status = harness.queue_status(
        lambda status: status.get("backlog") == 6 and "6 backlog" in status["scaling"],
        queue,
        what="with all in its backlog",
    )
    assert status["desiredReplicas"] == 2, status["scaling"]
    assert max(sizes(deployments, queue)) == 2

    heals(harness, queue)


@pytest.mark.usefixtures("broken")
def test_a_pool_that_no_node_takes_grows_for_node_autoscalers_to_see_and_heals(
    harness: Harness,
) -> None:
    status = trouble(harness, "homeless", {"Unschedulable"})
    assert "node" in conditions(status)["WorkersAvailable"]["message"]
    harness.batch("homeless-more", 4, queue="homeless")
    harness.until(lambda: len(harness.pods("homeless")) == 6, what="six pods that wait for a node")
    trouble(harness, "homeless", {"Unschedulable"})
    heals(harness, "homeless")


def heals(harness: Harness, queue: str) -> None:
    """Mend the template of a queue with six Tasks and see all of them end."""
    harness.change_queue(queue, workers={"template": {"spec": mended()}})
    names = [f"{queue}-{number}" for number in range(2)]
    names += [f"{queue}-more-{number}" for number in range(4)]
    for ended in harness.all_finished(names, seconds=90):
        assert (ended["phase"], ended["attempts"]) == ("Succeeded", 1)
    harness.queue_status(
        lambda status: conditions(status)["WorkersAvailable"]["reason"] in _WELL,
        queue,
        what="well again",
    )


def mended() -> Body:
    """Return the change that makes any of the broken templates a good one."""
    return {"containers": TEMPLATE["spec"]["containers"], "nodeSelector": None}


def sizes(deployments: Observations, queue: str) -> list[int]:
    """Return the sizes a pool was given, one after the other."""
    found = [version["spec"]["replicas"] for version in deployments.versions(f"{queue}-worker")]
    return [size for size, before in zip(found, [None, *found], strict=False) if size != before]


def tries(deployments: Observations, queue: str) -> list[float]:
    """Return when a pool was made larger, in whole seconds of the API server's clock.

    That is when the Deployment's controller first told of the new size: the API server keeps no
    time of a write to /scale. Of several times between which the pool was not made smaller, the
    last; none that the controller has not told of yet.
    """
    grown: list[int] = []
    size, grew = 0, False
    versions = deployments.versions(f"{queue}-worker")
    for version in versions:
        before, size = size, version["spec"]["replicas"]
        if size > before:
            grown[len(grown) - grew :] = [version["metadata"]["generation"]]
        grew = size > before or (grew and size == before)
    told = [version for version in versions if "observedGeneration" in version.get("status", {})]
    found = []
    for generation in grown:
        of_it = (one for one in told if one["status"]["observedGeneration"] >= generation)
        if (first := next(of_it, None)) is not None:
            found.append(status_time(first))
    return found


def status_time(seen: Body) -> float:
    """Return when the status of an object was last changed."""
    return max(
        datetime.fromisoformat(entry["time"]).timestamp()
        for entry in seen["metadata"]["managedFields"]
        if entry.get("subresource") == "status"
    )


def test_a_quota_is_told_not_hammered_at_and_used_when_it_is_raised(
    harness: Harness, deployments: Observations
) -> None:
    for name in harness.queues.names():
        harness.queue_status(lambda status: status.get("replicas") == 0, name, what="at zero")
    pods = harness.core("pods")
    harness.until(lambda: not harness.api.get(pods)["items"], what="no pod left")
    harness.create_core("resourcequotas", "few", spec={"hard": {"pods": "2"}})
    harness.until(
        lambda: "hard" in harness.api.get(harness.core("resourcequotas", "few")).get("status", {}),
        what="in force",
    )
    gates = Gates(harness)
    harness.queue(
        "tight",
        workers={"concurrency": 1, "template": gated_template()},
        scaling={"target": {"tasksPerReplica": 1}, "maxReplicas": 4},
    )
    names = gates.behind("tight", 4, queue="tight")
    status = trouble(harness, "tight", {"QuotaExceeded"})
    assert "exceeded quota" in conditions(status)["WorkersAvailable"]["message"]
    status = harness.queue_status(
        lambda status: status.get("desiredReplicas") == 2, "tight", what="at what can be had"
    )
    assert "quota" in status["scaling"]
    # It is tried again, but now and then only, and given up each time.
    harness.until(lambda: len(tries(deployments, "tight")) >= 3, what="tried again")
    asked = tries(deployments, "tight")
    pauses = [after - before for before, after in pairwise(asked)]
    assert min(pauses) >= FIRST_PAUSE_SECONDS - _ROUNDED_SECONDS, asked
    trouble(harness, "tight", {"QuotaExceeded"})

    harness.api.patch(harness.core("resourcequotas", "few"), {"spec": {"hard": {"pods": "6"}}})
    harness.available(4, "tight", seconds=120)
    harness.condition("WorkersAvailable", "True", "Available", "tight")
    gates.open("tight")
    for ended in harness.all_finished(names):
        assert (ended["phase"], ended["attempts"]) == ("Succeeded", 1)
