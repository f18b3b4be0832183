"""Our real decision and plan in the simulator; and worse ones, which must be noticed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.controller.pool.autoscaler import ScalingDecision, decide
from taskqueue.controller.pool.drain_plan import DrainStep
from taskqueue.model.scaling import DrainTimeTarget, ScalingPolicy
from tests.simulation import loads
from tests.simulation.cluster import Conditions
from tests.simulation.loads import Job, LoadCase, burst
from tests.simulation.summary import Summary
from tests.simulation.systems import OUR_RANGE, OURS, ours, simulate
from tests.unit.simulation.test_calibration import long_work

POD = Conditions(start_seconds=0.65)


def test_from_zero_it_is_the_start_of_a_pod_that_is_waited_for() -> None:
    load = LoadCase(name="one", jobs=(Job(40.5, 0.0),))
    assert simulate(OURS, load, POD).first_done < 0.9


def test_200_tasks_from_zero_take_little_more_than_ten_workers_need() -> None:
    load = LoadCase(name="200", jobs=burst(200, seconds=1.0, at=40.5))
    assert simulate(OURS, load, POD).all_done < 21.5  # 20 s is ideal


def nothing_was_disturbed(summary: Summary) -> bool:
    return (summary.removed_busy, summary.killed, summary.unfinished) == (0, 0, 0)


@pytest.mark.parametrize("system", OUR_RANGE, ids=lambda system: system.name)
def test_no_worker_with_long_work_is_removed(system: Any) -> None:
    runs = [simulate(system, long_work(seed), POD, seed=seed) for seed in range(5)]
    assert all(nothing_was_disturbed(run) for run in runs)
    assert sum(run.removed for run in runs) > 25, "nothing was shown if the pool did not shrink"


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("start", [0.7, 3.0, 10.0])
@pytest.mark.parametrize("make", [loads.sawtooth, loads.lognormal_times])
def test_nor_when_pods_start_slowly_or_have_many_slots(
    make: loads.Make, start: float, slots: int
) -> None:
    conditions = Conditions(start_seconds=start, slots=slots)
    for system in (OUR_RANGE[0], OUR_RANGE[3]):
        summary = simulate(system, make(1), conditions)
        assert nothing_was_disturbed(summary)
        assert summary.removed > 10


@pytest.mark.parametrize("start", [3.0, 10.0])
def test_no_pod_is_killed_when_pods_are_listed_all_the_time(
    start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a cost is written for one pod while another's drained worker is about to be removed."""
    monkeypatch.setattr("tests.simulation.operator.PollBackoff.pop_due", lambda *_, **__: True)
    for system in (OUR_RANGE[0], OUR_RANGE[3]):
        summary = simulate(system, loads.lognormal_times(1), Conditions(start_seconds=start))
        assert nothing_was_disturbed(summary)


def blind(pods: object, workers: object, *, target: int, **_: object) -> DrainStep:
    return DrainStep(replicas=target)


def test_a_plan_that_looks_at_nobody_is_noticed() -> None:
    at_once = ScalingPolicy(stabilization_seconds=0, idle_seconds_before_zero=0)
    summary = simulate(ours("blind", at_once, plan=blind), loads.lognormal_times(1), POD)
    assert summary.removed_busy > 10
    assert summary.killed > 0


def changed(**fields: Any) -> Callable[..., ScalingDecision]:
    def worse(policy: ScalingPolicy, *given: Any, now: float) -> ScalingDecision:
        return decide(replace(policy, **fields), *given, now=now)

    return worse


@pytest.mark.parametrize(
    ("fields", "wait", "cost"),
    [
        ({"up_step": 1}, 2.0, 0.0),
        ({"max_replicas": 4}, 2.0, 0.0),
        ({"stabilization_seconds": 300.0}, 0.0, 2.0),
        ({"idle_seconds_before_zero": 600.0}, 0.0, 1.2),
    ],
    ids=["sluggish", "mean", "lasting", "idle"],
)
def test_a_worse_decision_is_noticed(fields: dict[str, Any], wait: float, cost: float) -> None:
    conditions, load = Conditions(start_seconds=3.0), loads.pareto_times(1)
    good = simulate(OURS, load, conditions)
    bad = simulate(ours("worse", decide=changed(**fields)), load, conditions)
    assert bad.wait_p99 >= wait * good.wait_p99
    assert bad.pod_seconds >= cost * good.pod_seconds


def test_a_drain_time_is_kept_whatever_a_task_takes() -> None:
    """5 per worker would mean 25 s of waiting where each takes 8 s."""
    jobs = loads.arrivals(lambda now: 0.5, highest=0.5, until=900, seed=1, run=loads.about(8.0))
    load = LoadCase(name="slow", jobs=jobs)
    by_time = ours("drain", ScalingPolicy(target=DrainTimeTarget(seconds=8.0)))
    assert simulate(by_time, load, POD).wait_p99 < 12 < 25 < simulate(OURS, load, POD).wait_p99


def test_the_same_seed_gives_the_same_run() -> None:
    load = loads.lognormal_times(1)
    assert simulate(OURS, load, seed=2) == simulate(OURS, load, seed=2)
    assert simulate(OURS, load, seed=2) != simulate(OURS, load, seed=3)
