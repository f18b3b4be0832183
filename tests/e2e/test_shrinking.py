"""A pool that gets smaller: idle workers go, busy ones finish, whoever asks for it."""

from __future__ import annotations

import pytest

from tests.e2e.departures import Departures, names_of
from tests.e2e.gates import Gates, template
from tests.e2e.harness import Lab

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(lab: Lab, gates: Gates, departures: Departures) -> None:
    lab.queue(
        workers={"concurrency": 1, "template": template()},
        scaling={"target": {"tasksPerReplica": 1}, "minReplicas": 4, "maxReplicas": 4},
    )
    lab.available(4)


def running_in(lab: Lab, names: list[str]) -> set[str]:
    """Return the pods that Tasks run in, once all of them do."""
    return {lab.phase(name, "Running")["worker"] for name in names}


def pods_are(lab: Lab, expected: set[str]) -> None:
    """Return when the pool has these pods and no others."""
    lab.until(lambda: names_of(lab.pods()) == expected, what=f"the pods are {sorted(expected)}")


def paused_at(lab: Lab, size: int) -> None:
    """Have the pool at this size, with nobody but the test to change it."""
    lab.change_queue(scaling={"paused": True}, workers={"replicas": size})
    lab.available(size)


def scale(lab: Lab, size: int) -> None:
    """Ask for another size as people do."""
    lab.kubectl.ok("scale", "-n", lab.namespace, "taskqueue.taskqueue.dev/q", f"--replicas={size}")
    lab.queue_status(
        lambda status: status.get("desiredReplicas") == size, what=f"{size} workers desired"
    )


def test_idle_workers_go_and_busy_ones_finish(
    lab: Lab, gates: Gates, departures: Departures
) -> None:
    names = gates.behind("some-busy", 2)
    busy = running_in(lab, names)
    assert len(busy) == 2
    lab.change_queue(scaling={"minReplicas": 1})
    pods_are(lab, busy)
    gates.open("some-busy")
    lab.all_finished(names)
    lab.until(lambda: len(lab.pods()) == 1, what="at minReplicas")
    assert names_of(lab.pods()) < busy
    departures.assert_unharmed(names)


def test_kubectl_scale_of_a_paused_pool_waits_for_the_busy(
    lab: Lab, gates: Gates, departures: Departures
) -> None:
    paused_at(lab, 3)
    names = gates.behind("paused", 2)
    busy = running_in(lab, names)
    scale(lab, 0)
    pods_are(lab, busy)  # the idle one has gone, those two may not
    gates.open("paused")
    lab.all_finished(names)
    pods_are(lab, set())
    departures.assert_unharmed(names)


def test_a_worker_wanted_back_while_it_is_drained_is_replaced_when_it_is_done(
    lab: Lab, gates: Gates, departures: Departures
) -> None:
    paused_at(lab, 2)
    names = gates.behind("wanted-back", 2)
    busy = running_in(lab, names)
    scale(lab, 1)
    lab.until(lambda: draining(lab), what="one told to drain")
    scale(lab, 2)
    pods_are(lab, busy)
    gates.open("wanted-back")
    lab.all_finished(names)
    departures.assert_unharmed(names)
    # Both slots are there again, if not in the same pods.
    more = gates.behind("after-that", 2)
    assert len(running_in(lab, more)) == 2
    lab.available(2)
    gates.open("after-that")
    lab.all_finished(more)
    departures.assert_unharmed(more)


def draining(lab: Lab) -> bool:
    """Tell whether a worker of the pool that is there has said that it drains."""
    return any(line["event"] == "worker.draining" for line in lab.log_lines())


def test_work_that_comes_while_the_pool_shrinks_is_done_once(
    lab: Lab, gates: Gates, departures: Departures
) -> None:
    for turn in range(2):
        paused_at(lab, 4)
        gate = f"meanwhile-{turn}"
        names = gates.behind(gate, 2)
        scale(lab, 1)
        names += lab.batch(f"more-{turn}", 4, "wait", payload={"gate": gate})
        gates.open(gate)
        lab.all_finished(names)
        lab.available(1)
        departures.assert_unharmed(names)


def test_a_backlog_that_comes_back_in_the_middle_finds_its_workers(
    lab: Lab, gates: Gates, departures: Departures
) -> None:
    lab.change_queue(scaling={"paused": False, "minReplicas": 0})
    first = gates.behind("before", 4)
    running_in(lab, first)
    # One worker after the other has nothing to do, is drained, and is wanted again.
    gates.open("before")
    lab.all_finished(first)
    lab.until(lambda: len(lab.pods()) < 4, what="shrinking")
    second = gates.behind("again", 4)
    assert len(running_in(lab, second)) == 4
    gates.open("again")
    lab.all_finished(second)
    pods_are(lab, set())
    departures.assert_unharmed(first + second)
