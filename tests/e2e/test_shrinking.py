"""A pool that gets smaller: idle workers go, busy ones finish, whoever asks for it."""

from __future__ import annotations

import pytest

from tests.e2e.gates import Gates, template
from tests.e2e.harness import Harness
from tests.e2e.pod_removals import PodRemovals, names_of

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness, gates: Gates, pod_removals: PodRemovals) -> None:
    harness.queue(
        workers={"concurrency": 1, "template": template()},
        scaling={"target": {"tasksPerReplica": 1}, "minReplicas": 4, "maxReplicas": 4},
    )
    harness.available(4)


def running_in(harness: Harness, names: list[str]) -> set[str]:
    """Return the pods that Tasks run in, once all of them do."""
    return {harness.phase(name, "Running")["worker"] for name in names}


def pods_are(harness: Harness, expected: set[str]) -> None:
    """Return when the pool has these pods and no others."""
    harness.until(
        lambda: names_of(harness.pods()) == expected, what=f"the pods are {sorted(expected)}"
    )


def paused_at(harness: Harness, size: int) -> None:
    """Have the pool at this size, with nobody but the test to change it."""
    harness.change_queue(scaling={"paused": True}, workers={"replicas": size})
    harness.available(size)


def scale(harness: Harness, size: int) -> None:
    """Ask for another size as people do."""
    harness.kubectl.ok(
        "scale", "-n", harness.namespace, "taskqueue.taskqueue.dev/q", f"--replicas={size}"
    )
    harness.queue_status(
        lambda status: status.get("desiredReplicas") == size, what=f"{size} workers desired"
    )


def test_idle_workers_go_and_busy_ones_finish(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    names = gates.behind("some-busy", 2)
    busy = running_in(harness, names)
    assert len(busy) == 2
    harness.change_queue(scaling={"minReplicas": 1})
    pods_are(harness, busy)
    gates.open("some-busy")
    harness.all_finished(names)
    harness.until(lambda: len(harness.pods()) == 1, what="at minReplicas")
    assert names_of(harness.pods()) < busy
    pod_removals.assert_unharmed(names)


def test_kubectl_scale_of_a_paused_pool_waits_for_the_busy(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    paused_at(harness, 3)
    names = gates.behind("paused", 2)
    busy = running_in(harness, names)
    scale(harness, 0)
    pods_are(harness, busy)  # the idle one has gone, those two may not
    gates.open("paused")
    harness.all_finished(names)
    pods_are(harness, set())
    pod_removals.assert_unharmed(names)


def test_a_worker_wanted_back_while_it_is_drained_is_replaced_when_it_is_done(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    paused_at(harness, 2)
    names = gates.behind("wanted-back", 2)
    busy = running_in(harness, names)
    scale(harness, 1)
    harness.until(lambda: draining(harness), what="one told to drain")
    scale(harness, 2)
    pods_are(harness, busy)
    gates.open("wanted-back")
    harness.all_finished(names)
    pod_removals.assert_unharmed(names)
    # Both slots are there again, if not in the same pods.
    more = gates.behind("after-that", 2)
    assert len(running_in(harness, more)) == 2
    harness.available(2)
    gates.open("after-that")
    harness.all_finished(more)
    pod_removals.assert_unharmed(more)


def draining(harness: Harness) -> bool:
    """Tell whether a worker of the pool that is there has said that it drains."""
    return any(line["event"] == "worker.drain_started" for line in harness.log_lines())


def test_work_that_comes_while_the_pool_shrinks_is_done_once(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    for turn in range(2):
        paused_at(harness, 4)
        gate = f"meanwhile-{turn}"
        names = gates.behind(gate, 2)
        scale(harness, 1)
        names += harness.batch(f"more-{turn}", 4, "wait", payload={"gate": gate})
        gates.open(gate)
        harness.all_finished(names)
        harness.available(1)
        pod_removals.assert_unharmed(names)


def test_a_backlog_that_comes_back_in_the_middle_finds_its_workers(
    harness: Harness, gates: Gates, pod_removals: PodRemovals
) -> None:
    harness.change_queue(scaling={"paused": False, "minReplicas": 0})
    first = gates.behind("before", 4)
    running_in(harness, first)
    # One worker after the other has nothing to do, is drained, and is wanted again.
    gates.open("before")
    harness.all_finished(first)
    harness.until(lambda: len(harness.pods()) < 4, what="shrinking")
    second = gates.behind("again", 4)
    assert len(running_in(harness, second)) == 4
    gates.open("again")
    harness.all_finished(second)
    pods_are(harness, set())
    pod_removals.assert_unharmed(first + second)
