from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.domain.scaling import Decision, ScalingMemory, ScalingPolicy, decide

POLICY = ScalingPolicy(
    min_replicas=0,
    max_replicas=10,
    tasks_per_replica=5,
    stabilization_seconds=30,
    idle_seconds_before_zero=60,
)


class Pool:
    """Runs the decision along a time line of one-second steps."""

    def __init__(self, policy: ScalingPolicy = POLICY, size: int = 0) -> None:
        self.policy = policy
        self.size = size
        self.memory = ScalingMemory()
        self.now = 0.0

    def step(self, backlog: int | None, seconds: float = 1.0) -> Decision:
        self.now += seconds
        decision = decide(
            self.policy, self.memory, now=self.now, backlog=backlog, current=self.size
        )
        self.size, self.memory = decision.replicas, decision.memory
        return decision

    def steps(self, backlog: int | None, seconds: int) -> int:
        for _ in range(seconds):
            self.step(backlog)
        return self.size


def test_it_grows_at_once() -> None:
    pool = Pool()
    assert pool.step(1).replicas == 1
    assert pool.step(26).replicas == 6
    decision = pool.step(500)
    assert decision.replicas == 10
    assert decision.explanation == "10 = ceil(500 backlog / 5 per replica), capped by maxReplicas"


def test_it_shrinks_only_after_the_stabilization_window() -> None:
    pool = Pool()
    pool.step(50)
    assert pool.steps(5, 29) == 10
    assert pool.steps(5, 2) == 1


def test_a_short_dip_does_not_shrink_it() -> None:
    pool = Pool()
    pool.step(50)
    pool.steps(5, 20)
    pool.step(50)
    assert pool.steps(5, 20) == 10


def test_the_last_worker_goes_after_the_idle_time() -> None:
    pool = Pool()
    pool.step(5)
    assert pool.steps(0, 59) == 1
    assert pool.steps(0, 2) == 0


def test_it_never_reaches_zero_while_something_is_left() -> None:
    pool = Pool()
    assert pool.steps(1, 500) == 1


def test_an_unknown_backlog_holds_the_size() -> None:
    pool = Pool()
    pool.step(50)
    assert pool.steps(None, 500) == 10
    assert not pool.step(None).active
    assert "unknown" in pool.step(None).explanation


def test_a_restarted_operator_does_not_shrink_the_pool_it_finds_at_once() -> None:
    pool = Pool(size=8)
    assert pool.step(0).replicas == 8
    assert pool.steps(0, 28) == 8
    assert pool.steps(0, 100) == 0


def test_paused_obeys_the_size_given() -> None:
    pool = Pool(replace(POLICY, paused_replicas=4))
    decision = pool.step(500)
    assert (decision.replicas, decision.active) == (4, False)


def test_min_replicas_is_kept() -> None:
    pool = Pool(replace(POLICY, min_replicas=2))
    assert pool.step(0).replicas == 2
    assert pool.steps(0, 500) == 2


@given(
    st.lists(st.none() | st.integers(0, 200), min_size=1, max_size=60),
    st.integers(0, 5),
    st.integers(5, 12),
)
def test_the_size_stays_within_its_limits_and_covers_what_waits(
    backlogs: list[int | None], low: int, high: int
) -> None:
    pool = Pool(replace(POLICY, min_replicas=low, max_replicas=high), size=low)
    for backlog in backlogs:
        size = pool.step(backlog).replicas
        assert low <= size <= high
        if backlog:
            assert size >= min(high, -(-backlog // POLICY.tasks_per_replica))


@pytest.mark.parametrize("backlog", [1, 7, 50])
def test_a_steady_backlog_never_makes_it_oscillate(backlog: int) -> None:
    pool = Pool()
    pool.step(backlog)
    first = pool.size
    assert {pool.step(backlog).replicas for _ in range(300)} == {first}


def test_it_does_not_shrink_below_what_running_tasks_keep_busy() -> None:
    memory = ScalingMemory(wanted=((0.0, 10),))
    decision = decide(POLICY, memory, now=100.0, backlog=10, current=10, busy=8)
    assert decision.replicas == 8
    assert "held at 8 by running tasks" in decision.explanation
    grown = decide(POLICY, ScalingMemory(), now=100.0, backlog=50, current=2, busy=40)
    assert grown.replicas == 10  # busy holds, it does not grow


DRAINING = replace(POLICY, min_replicas=3, draining=True)


def drain(backlog: int, pending: int, *, current: int, busy: int = 0) -> Decision:
    return decide(
        DRAINING,
        ScalingMemory(wanted=((0.0, current),), last_backlog=0.0),
        now=100.0,
        backlog=backlog,
        pending=pending,
        current=current,
        busy=busy,
    )


def test_a_drained_pool_serves_only_what_is_published() -> None:
    decision = drain(107, 100, current=10)
    assert decision.replicas == 2
    assert decision.explanation == (
        "2 = ceil(7 published / 5 per replica), drained by stopPolicy HoldAndDrain"
    )


def test_a_drained_pool_goes_to_zero_below_its_minimum_while_tasks_wait() -> None:
    decision = drain(100, 100, current=3)
    assert decision.replicas == 0
    assert "drained by stopPolicy HoldAndDrain" in decision.explanation


def test_a_drained_pool_keeps_the_workers_of_what_runs() -> None:
    assert drain(4, 0, current=6, busy=4).replicas == 4


def test_waiting_tasks_count_while_nothing_is_drained() -> None:
    decision = decide(POLICY, ScalingMemory(), now=0.0, backlog=20, pending=20, current=0)
    assert decision.replicas == 4
