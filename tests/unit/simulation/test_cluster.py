"""The model of pods and the queue keeps Kubernetes' and RabbitMQ's rules."""

import math

import pytest

from tests.simulation.cluster import Cluster, Conditions, PodState, deletion_order
from tests.simulation.loads import Job, burst
from tests.simulation.timeline import Timeline

EXACT = Conditions(start_seconds=1.0, start_spread=0.0)


def cluster(*jobs: Job, conditions: Conditions = EXACT) -> Cluster:
    return Cluster(Timeline(), jobs, conditions, seed=1)


def test_a_pod_takes_work_once_it_has_started_first_in_first_out() -> None:
    one = cluster(Job(0.0, 5.0), Job(0.5, 1.0), Job(0.2, 2.0))
    one.scale(1)
    one.timeline.run(20)
    first, third, second = one.works
    assert (first.started, first.ended) == (1.0, 6.0)
    assert (second.started, second.ended) == (6.0, 8.0)
    assert (third.started, third.ended) == (8.0, 9.0)
    assert one.unfinished == 0


def test_a_worker_has_as_much_in_hand_as_it_has_slots() -> None:
    conditions = Conditions(start_seconds=1.0, start_spread=0.0, slots=3)
    one = cluster(*burst(5, seconds=10), conditions=conditions)
    one.scale(1)
    one.timeline.run(5)
    assert (one.unacknowledged, len(one.waiting)) == (3, 2)


def test_work_goes_to_the_least_busy() -> None:
    one = cluster(
        *(Job(5.0 + at, 100.0) for at in range(4)),
        conditions=Conditions(start_seconds=1.0, slots=2),
    )
    one.scale(2)
    one.timeline.run(6.5)
    assert [len(pod.running) for pod in one.pods.values()] == [1, 1]


def test_pods_cost_from_creation_until_gone() -> None:
    one = cluster()
    one.scale(2)
    one.timeline.run(10)
    assert one.cost_until(10) == 20
    one.scale(1)
    one.timeline.run(11)
    assert one.cost_until(11) == pytest.approx(10.1 + 11)


def test_a_removed_worker_finishes_within_its_grace_period() -> None:
    one = cluster(Job(0.0, 20.0), Job(0.0, 5.0))
    one.scale(1)
    one.timeline.run(2)
    one.scale(0)
    one.timeline.run(40)
    first, second = one.works
    assert first.ended == 21.0
    assert second.started is None, "it takes nothing more"
    assert (one.removed, one.removed_busy, one.killed) == (1, 1, 0)
    assert one.pods == {}
    assert one.cost_until(40) == pytest.approx(21.1)


def test_what_outlasts_the_grace_period_is_killed_and_runs_again_at_the_head() -> None:
    one = cluster(Job(0.0, 60.0), Job(10.0, 5.0))
    one.scale(1)
    one.timeline.run(2)
    one.scale(0)
    one.timeline.run(45)
    first, second = one.works
    assert (first.kills, one.killed) == (1, 1)
    assert list(one.waiting) == [first, second]
    one.scale(1)
    one.timeline.run(200)
    assert first.started == 1.0, "that it has waited is told once"
    assert first.ended == 106.0
    assert second.ended == 111.0


def test_a_pod_that_was_removed_while_it_started_is_no_worker() -> None:
    one = cluster(Job(0.0, 1.0))
    one.scale(1)
    one.timeline.run(0.5)
    one.scale(0)
    one.timeline.run(10)
    assert (one.removed, one.unfinished) == (0, 1)
    assert one.cost_until(10) == 0.5


def test_a_deleted_pod_is_replaced() -> None:
    one = cluster()
    one.scale(1)
    (name,) = one.pods
    one.timeline.run(2)
    one.delete(name)
    one.timeline.run(4)
    (pod,) = one.pods.values()
    assert pod.name != name
    assert pod.created == 2.0


def test_a_drained_worker_takes_nothing_more_and_stays() -> None:
    one = cluster(Job(0.0, 5.0), Job(0.0, 5.0))
    one.scale(1)
    (name,) = one.pods
    one.timeline.run(2)
    one.drain(name)
    one.timeline.run(20)
    assert [work.ended for work in one.works] == [6.0, None]
    assert list(one.pods) == [name]


NOW = 1000.0


def pod(
    name: str, *, age: float = 100.0, started: bool = True, ready: bool = True, cost: int = 0
) -> PodState:
    return PodState(
        name=name,
        created=NOW - age,
        started=NOW - age if started else None,
        ready_at=NOW - age if ready else None,
        cost=cost,
    )


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (pod("z", started=False, ready=False, cost=5), pod("a", ready=False, cost=-5)),
        (pod("z", ready=False, cost=5), pod("a", cost=-5)),
        (pod("z", cost=-5, age=900), pod("a", age=1)),
        (pod("z", age=10), pod("a", age=100)),
        (pod("a", age=99), pod("z", age=98)),  # of the same power of two: by UID
    ],
    ids=["pending", "not ready", "cost", "young", "chance"],
)
def test_the_controller_removes_in_its_own_order(first: PodState, later: PodState) -> None:
    assert deletion_order(first, NOW) < deletion_order(later, NOW)


def test_whether_a_pod_works_does_not_matter_to_the_controller() -> None:
    one = cluster(*(Job(at / 10, 300.0) for at in range(40)), conditions=EXACT)
    one.scale(8)
    one.timeline.run(100)
    one.scale(4)
    assert one.removed_busy == 4


def test_starts_are_spread_about_their_time() -> None:
    many = Cluster(Timeline(), (), Conditions(start_seconds=10.0, start_spread=0.2), seed=5)
    many.scale(50)
    many.timeline.run(20)
    times = [pod.ready_at for pod in many.pods.values() if pod.ready_at is not None]
    assert 8 <= min(times) < 9
    assert 11 < max(times) <= 12
    assert math.isclose(sum(times) / 50, 10, rel_tol=0.05)
