"""The size decided on, along time lines of one-second steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from taskqueue.controller.pool.autoscaler import (
    Load,
    PoolObservation,
    ScalingDecision,
    ScalingMemory,
    decide,
)
from taskqueue.model.scaling import BacklogTarget, DrainTimeTarget, ScalingPolicy

POLICY = ScalingPolicy(
    min_replicas=0,
    max_replicas=10,
    target=BacklogTarget(5),
    stabilization_seconds=30,
    idle_seconds_before_zero=60,
)
UNREADABLE = "the management endpoint does not answer"


class Line:
    """Runs the decision along a time line; what is decided is in place at once."""

    def __init__(self, policy: ScalingPolicy = POLICY, size: int = 0) -> None:
        self.policy = policy
        self.size = size
        self.memory = ScalingMemory()
        self.now = 0.0

    def step(self, backlog: int | None, *, seconds: float = 1.0, **seen: Any) -> ScalingDecision:
        """Take one step. ``seen``: fields of Load, and of Pool."""
        self.now += seconds
        names = PoolObservation.__dataclass_fields__
        place = {name: value for name, value in seen.items() if name in names}
        work = {name: value for name, value in seen.items() if name not in names}
        decision = decide(
            self.policy,
            self.memory,
            Load(backlog=backlog, **work),
            PoolObservation(**({"size": self.size, "replicas": self.size} | place)),
            now=self.now,
        )
        self.size, self.memory = decision.replicas, decision.memory
        return decision

    def steps(self, backlog: int | None, seconds: int, **seen: Any) -> int:
        for _ in range(seconds):
            self.step(backlog, **seen)
        return self.size


# Growing


def test_it_grows_at_once() -> None:
    line = Line()
    assert line.step(1).replicas == 1
    assert line.step(26).replicas == 6
    decision = line.step(500)
    assert decision.replicas == 10
    assert decision.explanation == "10 = ceil(500 backlog / 5 per replica), capped by maxReplicas"
    assert (decision.active, decision.inactive_reason) == (True, "")


def test_a_decision_records_what_it_was_made_on() -> None:
    load, pool = Load(backlog=7, pending=3), PoolObservation(size=1, replicas=2, available=1)
    decision = decide(POLICY, ScalingMemory(), load, pool, now=0.0)
    assert (decision.load, decision.pool) == (load, pool)


def test_min_replicas_is_kept() -> None:
    line = Line(replace(POLICY, min_replicas=2))
    decision = line.step(0)
    assert decision.replicas == 2
    assert decision.explanation == "2 = ceil(0 backlog / 5 per replica), raised to minReplicas"
    assert line.steps(0, 500) == 2


def test_growth_in_steps_waits_until_the_last_ones_are_available() -> None:
    line = Line(replace(POLICY, up_step=3))
    decision = line.step(50, available=0)
    assert decision.explanation == (
        "3 first, with 3 started at a time, then 10 = ceil(50 backlog / 5 per replica)"
    )
    assert line.step(50, available=0).replicas == 3
    assert line.step(50, available=2).replicas == 5
    assert line.step(50, available=5).replicas == 8
    assert line.step(50, available=5).replicas == 8
    assert line.step(50, available=2).replicas == 8  # some were lost: no reason to shrink
    assert line.step(50, available=8).replicas == 10


def test_what_is_in_place_counts_as_available_where_that_is_not_known() -> None:
    line = Line(replace(POLICY, up_step=3), size=2)
    assert line.step(50, replicas=1).replicas == 4


# Drain time


def drain_time(backlog: int, mean: float | None, *, slots: int = 1, seconds: float = 60) -> str:
    policy = replace(POLICY, max_replicas=1000, target=DrainTimeTarget(seconds=seconds))
    load = Load(backlog=backlog, mean_run_seconds=mean, slots=slots)
    decision = decide(policy, ScalingMemory(), load, PoolObservation(size=0, replicas=0), now=0.0)
    return decision.explanation


@pytest.mark.parametrize(
    ("said", "backlog", "mean", "slots"),
    [
        ("2 = ceil(120 backlog x 0.8 s / (1 slot x 60 s))", 120, 0.8, 1),
        ("1 = ceil(120 backlog x 0.8 s / (2 slots x 60 s))", 120, 0.8, 2),
        ("26 = ceil(120 backlog x 12.9 s / (1 slot x 60 s))", 120, 12.9123, 1),
        ("24 = ceil(120 backlog / 5 per replica), until a run time is measured", 120, None, 2),
        ("0 = ceil(0 backlog x 0.8 s / (1 slot x 60 s))", 0, 0.8, 1),
        (
            "1 = ceil(120 backlog x 0 s / (1 slot x 60 s)), at least 1 for any backlog",
            120,
            0.0,
            1,
        ),
        (
            "2 = ceil(3 backlog x 600 s / (2 slots x 60 s)), capped at a slot per task",
            3,
            600.0,
            2,
        ),
    ],
)
def test_drain_time(said: str, backlog: int, mean: float | None, slots: int) -> None:
    assert drain_time(backlog, mean, slots=slots) == said


def test_a_whole_quotient_is_not_rounded_up() -> None:
    assert drain_time(100, 1.1, seconds=11).startswith("10 = ")


# Shrinking


def test_it_shrinks_only_after_the_stabilization_window() -> None:
    line = Line()
    line.step(50)
    assert line.steps(5, 29) == 10
    assert line.step(5, seconds=0).explanation == (
        "10 held for 30 s of stabilization, then 1 = ceil(5 backlog / 5 per replica)"
    )
    assert line.steps(5, 2) == 1


def test_a_short_dip_does_not_shrink_it() -> None:
    line = Line()
    line.step(50)
    line.steps(5, 20)
    line.step(50)
    assert line.steps(5, 20) == 10


def test_it_shrinks_to_the_largest_size_wanted_within_the_window() -> None:
    line = Line()
    line.step(50)
    line.steps(5, 10)
    line.step(20)
    assert line.steps(5, 20) == 4  # 50 is older than the window, 20 is not
    assert line.steps(5, 11) == 1


def test_what_could_not_be_had_is_not_grown_to_when_it_is_wanted_no_more() -> None:
    line = Line()
    line.step(50, ceiling=4)
    assert line.steps(5, 20) == 4


def test_the_last_worker_goes_after_the_idle_time() -> None:
    line = Line()
    line.step(5)
    assert line.steps(0, 59) == 1
    decision = line.step(0, seconds=0)
    assert decision.explanation == (
        "1 held until idle for 60 s, then 0 = ceil(0 backlog / 5 per replica)"
    )
    assert line.steps(0, 2) == 0


def test_it_never_reaches_zero_while_something_is_left() -> None:
    line = Line()
    assert line.steps(1, 500) == 1


def test_no_workers_at_all_can_be_asked_for() -> None:
    line = Line(size=3)
    line.step(15)
    line.policy = replace(POLICY, max_replicas=0)
    assert line.step(15).explanation == (
        "0 = ceil(15 backlog / 5 per replica), capped by maxReplicas"
    )


def test_it_does_not_shrink_below_what_running_tasks_keep_busy() -> None:
    line = Line(size=10)
    line.steps(10, 40, busy=8)
    decision = line.step(10, busy=8)
    assert decision.explanation == (
        "8 held by running tasks, then 2 = ceil(10 backlog / 5 per replica)"
    )


def test_it_does_not_shrink_below_those_that_were_busy_lately() -> None:
    """They would come back as soon as the backlog has grown: a steady load goes to and fro."""
    line = Line(size=10)
    line.steps(10, 40, busy=8)
    decision = line.step(10, busy=1)
    assert decision.explanation == (
        "8 held, all busy within the last 30 s, then 2 = ceil(10 backlog / 5 per replica)"
    )
    line.steps(10, 20, busy=5)
    assert line.steps(10, 9, busy=1) == 5
    assert line.steps(10, 25, busy=1) == 2


def test_without_stabilization_only_those_busy_now_are_kept() -> None:
    line = Line(replace(POLICY, stabilization_seconds=0), size=10)
    assert line.step(10, busy=8).replicas == 8
    assert line.step(10, busy=1).replicas == 2


def test_busy_workers_are_no_reason_to_grow() -> None:
    assert Line(size=2).step(50, busy=40).replicas == 10
    assert Line(size=2).step(5, busy=40).replicas == 2


def test_max_replicas_is_obeyed_by_busy_workers_too() -> None:
    """Under a steady load all would stay busy, and the size would never come down."""
    line = Line(size=10)
    line.step(50, busy=10)
    line.policy = replace(POLICY, max_replicas=4)
    assert line.step(50, busy=10).replicas == 4


def test_shrinking_in_steps_waits_until_the_last_ones_are_gone() -> None:
    line = Line(replace(POLICY, down_step=2, stabilization_seconds=0), size=10)
    decision = line.step(5)
    assert decision.explanation == (
        "8 first, with 2 drained at a time, then 1 = ceil(5 backlog / 5 per replica)"
    )
    assert line.step(5, replicas=10).replicas == 8
    assert line.step(5, replicas=9).replicas == 7
    assert line.step(5, replicas=7).replicas == 5
    assert line.step(5, replicas=7).replicas == 5
    assert line.step(30, replicas=7).replicas == 6


def test_a_lowered_maximum_is_reached_in_steps_too() -> None:
    line = Line(replace(POLICY, down_step=3), size=10)
    line.step(50)
    line.policy = replace(line.policy, max_replicas=5)
    assert [line.step(50).replicas for _ in range(3)] == [7, 5, 5]


@pytest.mark.parametrize("backlog", [1, 7, 50])
def test_a_steady_backlog_never_makes_it_oscillate(backlog: int) -> None:
    line = Line()
    line.step(backlog)
    first = line.size
    assert {line.step(backlog).replicas for _ in range(300)} == {first}


# Not knowing


def test_a_restarted_operator_does_not_shrink_the_pool_it_finds_at_once() -> None:
    line = Line(size=8)
    assert line.step(0).replicas == 8
    assert line.steps(0, 28) == 8
    assert line.steps(0, 2) == 1
    assert line.steps(0, 28) == 1
    assert line.steps(0, 2) == 0


def test_an_unknown_backlog_holds_the_size() -> None:
    line = Line()
    line.step(50)
    assert line.steps(None, 500) == 10
    decision = line.step(None, error="the broker is\n not connected")
    assert decision.explanation == "10 held: the backlog is unknown: the broker is not connected"
    assert (decision.active, decision.inactive_reason) == (False, "BacklogUnknown")


def test_an_unknown_backlog_does_not_set_the_limits_aside() -> None:
    line = Line(replace(POLICY, min_replicas=2, max_replicas=5))
    assert line.step(None).explanation == "2 = minReplicas, the backlog is unknown"
    line.size = 8
    assert line.step(None, busy=8).explanation == "5 = maxReplicas, the backlog is unknown"


@pytest.mark.parametrize("seen", [{"backlog": None}, {"backlog": 0, "error": UNREADABLE}])
def test_after_a_time_of_not_knowing_shrinking_starts_anew(seen: dict[str, Any]) -> None:
    line = Line()
    line.step(50)
    for _ in range(500):
        line.step(**seen)
    assert line.steps(0, 30) == 10
    assert line.steps(0, 30) == 1
    assert line.steps(0, 1) == 0


def test_it_falls_back_when_the_backlog_is_unknown_for_long() -> None:
    line = Line(replace(POLICY, fallback_replicas=3), size=10)
    assert line.steps(None, 30) == 10
    decision = line.step(None)
    assert decision.explanation == "3 = fallback.replicas, the backlog is unknown"
    assert decision.inactive_reason == "BacklogUnknown"
    line.step(50)
    assert line.steps(None, 30) == 10  # it was known in between


@pytest.mark.parametrize(
    ("change", "busy", "size"),
    [
        ({}, 0, 3),
        ({}, 6, 6),
        ({"fallback_replicas": 12}, 0, 10),
        ({"min_replicas": 5}, 0, 5),
        ({"down_step": 1}, 0, 7),
        ({"draining": True}, 0, 8),
    ],
)
def test_the_fallback_keeps_to_the_other_rules(
    change: dict[str, Any], busy: int, size: int
) -> None:
    policy = replace(replace(POLICY, fallback_replicas=3), **change)
    line = Line(policy, size=8)
    line.step(None)
    assert line.step(None, seconds=30, busy=busy).replicas == size


def test_a_lower_bound_makes_it_grow_but_not_shrink() -> None:
    line = Line()
    decision = line.step(25, error=UNREADABLE)
    assert decision.explanation == (
        "5 = ceil(25 backlog / 5 per replica), the backlog may be larger: " + UNREADABLE
    )
    assert (decision.active, decision.inactive_reason) == (False, "StatisticsUnknown")
    assert line.steps(0, 500, error=UNREADABLE) == 5
    assert line.step(0, error=UNREADABLE).explanation == (
        "5 held over 0 = ceil(0 backlog / 5 per replica), the backlog may be larger: " + UNREADABLE
    )


def test_a_long_reason_is_cut() -> None:
    said = Line(size=4).step(None, error="x" * 5000).explanation
    assert len(said) < 400
    assert said.endswith("x…")


# What can be had


def test_no_more_than_can_be_had_is_asked_for() -> None:
    line = Line()
    quota: dict[str, Any] = {"ceiling": 4, "ceiling_reason": "exceeded quota: pods=4"}
    decision = line.step(500, **quota)
    assert decision.explanation == (
        "4 is all that can be had: exceeded quota: pods=4; wanted: "
        "10 = ceil(500 backlog / 5 per replica), capped by maxReplicas"
    )
    assert (decision.active, decision.wanted) == (True, 10)
    assert line.step(500, ceiling=5).replicas == 5
    assert line.step(500).replicas == 10


def test_a_ceiling_of_nothing() -> None:
    assert Line(size=1).step(5, ceiling=0).explanation.startswith("0 is all that can be had; ")


def test_a_ceiling_that_is_not_reached_is_not_told() -> None:
    assert "had" not in Line().step(20, ceiling=4).explanation


# Paused


def test_paused_obeys_the_size_given() -> None:
    line = Line(replace(POLICY, paused_replicas=40))
    decision = line.step(500, busy=3)
    assert decision.explanation == "40 = spec.workers.replicas, scaling is paused"
    assert (decision.active, decision.inactive_reason) == (False, "Paused")
    line.policy = replace(POLICY, paused_replicas=0)
    assert line.step(None, busy=3).replicas == 0


def test_after_a_pause_the_size_found_counts_as_wanted() -> None:
    line = Line()
    line.step(50)
    line.policy = replace(POLICY, paused_replicas=7)
    assert line.steps(5, 100) == 7
    line.policy = POLICY
    assert line.steps(5, 30) == 7
    assert line.step(5).replicas == 1


# Drained by stopPolicy

DRAINING = replace(POLICY, min_replicas=3, draining=True)


def drain(backlog: int, pending: int, *, size: int, busy: int = 0) -> ScalingDecision:
    return decide(
        DRAINING,
        ScalingMemory(wanted=((0.0, size),), last_backlog=0.0),
        Load(backlog=backlog, pending=pending, busy=busy),
        PoolObservation(size=size, replicas=size),
        now=100.0,
    )


def test_a_drained_pool_serves_only_what_is_published() -> None:
    decision = drain(107, 100, size=10)
    assert decision.replicas == 2
    assert decision.explanation == (
        "2 = ceil(7 published / 5 per replica), drained by stopPolicy HoldAndDrain"
    )


def test_a_drained_pool_goes_to_zero_below_its_minimum_while_tasks_wait() -> None:
    decision = drain(100, 100, size=3)
    assert decision.replicas == 0
    assert "drained by stopPolicy HoldAndDrain" in decision.explanation


def test_a_drained_pool_keeps_the_workers_of_what_runs() -> None:
    assert drain(4, 0, size=6, busy=4).replicas == 4


def test_waiting_tasks_count_while_nothing_is_drained() -> None:
    assert Line().step(20, pending=20).replicas == 4
