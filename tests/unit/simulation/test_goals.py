"""What the project promises of scaling, load by load, beside KEDA; without a clock.

At no more pod-seconds than KEDA at its fastest, the 99th percentile of waiting is at most half of
its; nothing is killed, no worker with work is removed; on a steady load the size stays.
"""

from functools import cache

import pytest

from tests.simulation import compare, loads
from tests.simulation.cluster import Conditions
from tests.simulation.summary import Summary
from tests.simulation.systems import (
    KEDA,
    KEDA_FASTEST,
    KEDA_FASTEST_AMQP,
    KEDA_PATIENT,
    OURS,
    System,
    quick,
    simulate,
)

NAMES = [make.__name__ for make in loads.ALL]
#: With 5 per worker what waits there waits for its target, whoever scales, not for a decision.
BY_TARGET = {"recorded_by_five"}
BY_SCALING = [name for name in NAMES if name not in BY_TARGET]
POD = Conditions()
#: Fewer than the command looks at, for the time it takes.
RANGE = (quick(0, 0), quick(1, 0), quick(2, 0), quick(10, 10), OURS)
#: A run of each load by chance; two of them in `make test-long`.
of_seeds = pytest.mark.parametrize(
    "seeds", [(1,), pytest.param((1, 2), marks=pytest.mark.long)], ids=["one seed", "two seeds"]
)
Seeds = tuple[int, ...]
#: How long work waits for KEDA depends on when it polls: on a load without chance, on that alone.
BY_PHASE = {"constant"}


@cache
def found(name: str, seeds: Seeds) -> dict[str, Summary]:
    make = getattr(loads, name)
    seeds = (1, 2) if name in BY_PHASE else seeds
    systems = (*RANGE, KEDA, KEDA_PATIENT, KEDA_FASTEST, KEDA_FASTEST_AMQP)
    return compare.run(systems, make, POD, seeds=seeds)


def matched(name: str, theirs: System, seeds: Seeds) -> compare.Match:
    ours = {system.name: found(name, seeds)[system.name] for system in RANGE}
    return compare.match(theirs.name, found(name, seeds)[theirs.name], ours)


@of_seeds
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_killed_and_nobody_at_work_removed(name: str, seeds: Seeds) -> None:
    for system in RANGE:
        summary = found(name, seeds)[system.name]
        assert (summary.killed, summary.removed_busy, summary.unfinished) == (0, 0, 0)
    assert found(name, seeds)[KEDA_FASTEST.name].removed_busy > 0, "else nothing was shown"


@of_seeds
@pytest.mark.parametrize(
    ("name", "theirs"),
    [(name, theirs) for name in BY_SCALING for theirs in (KEDA_FASTEST, KEDA_PATIENT)],
    ids=lambda value: getattr(value, "name", value),
)
def test_at_no_more_cost_work_waits_half_as_long(name: str, theirs: System, seeds: Seeds) -> None:
    best = matched(name, theirs, seeds)
    assert best.cost_ratio <= 1
    assert best.wait_ratio <= 0.5


@of_seeds
@pytest.mark.parametrize("name", BY_SCALING)
def test_our_default_waits_half_as_long_as_the_fastest_and_costs_less_than_the_default(
    name: str, seeds: Seeds
) -> None:
    ours = found(name, seeds)[OURS.name]
    assert ours.wait_p99 <= 0.5 * found(name, seeds)[KEDA_FASTEST.name].wait_p99
    assert ours.pod_seconds <= found(name, seeds)[KEDA.name].pod_seconds


@of_seeds
@pytest.mark.parametrize("name", sorted(BY_TARGET))
def test_where_the_target_is_what_is_waited_for_it_is_still_less(name: str, seeds: Seeds) -> None:
    best = matched(name, KEDA_FASTEST, seeds)
    assert best.cost_ratio <= 1
    assert best.wait_ratio <= 0.75


@of_seeds
@pytest.mark.parametrize("name", BY_SCALING)
def test_what_is_cheapest_of_all_removes_workers_at_work(name: str, seeds: Seeds) -> None:
    """Counting only what is ready, KEDA costs a few percent less than ours on some loads."""
    theirs, least = found(name, seeds)[KEDA_FASTEST_AMQP.name], RANGE[0].name
    assert found(name, seeds)[least].pod_seconds <= 1.25 * theirs.pod_seconds
    assert theirs.removed_busy > 0.25 * theirs.removed


@pytest.mark.parametrize(
    ("per_second", "seconds"),
    [(3.0, 1.0), (4.5, 1.0), (0.4, 8.0)],
)
def test_at_a_constant_load_the_size_stays(per_second: float, seconds: float) -> None:
    load = loads.constant(1, per_second, seconds)
    assert simulate(OURS, load, POD).oscillations == 0


@pytest.mark.parametrize("per_second", [2.0, 4.5, 7.5])
def test_at_a_steady_load_with_chance_in_it_the_size_does_not_go_to_and_fro(
    per_second: float,
) -> None:
    runs = [simulate(OURS, loads.steady(seed, per_second), POD, seed=seed) for seed in (1, 2)]
    assert [run.oscillations for run in runs] == [0, 0]
