"""What is counted in a run, and how."""

import pytest

from tests.simulation.cluster import Cluster, Conditions
from tests.simulation.compare import match
from tests.simulation.loads import Job, LoadCase
from tests.simulation.summary import Summary, oscillations
from tests.simulation.timeline import Timeline

ALL_TIME = (0.0, 10_000.0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(0, 0), (10, 5)], 0),
        ([(0, 5), (10, 4), (20, 3)], 0),
        ([(0, 5), (10, 4), (20, 5)], 1),
        ([(0, 5), (10, 4), (20, 3), (30, 4), (40, 5)], 1),
        ([(0, 5), (10, 4), (20, 5), (30, 4), (40, 5)], 2),
        ([(0, 5), (10, 4), (310, 5)], 1),
        ([(0, 5), (10, 4), (311, 5)], 0),
    ],
    ids=["growth", "shrink", "to and fro", "in steps", "twice", "just", "later"],
)
def test_an_oscillation_is_a_shrink_taken_back_soon(
    sizes: list[tuple[float, int]], expected: int
) -> None:
    assert oscillations(sizes, ALL_TIME) == expected


def test_only_what_happens_while_the_load_is_steady_counts() -> None:
    sizes = [(0.0, 5), (10.0, 4), (20.0, 5), (30.0, 4), (40.0, 5)]
    assert oscillations(sizes, (25.0, 100.0)) == 1
    assert oscillations(sizes, (15.0, 35.0)) == 0


def test_summary_of_a_small_run_is_as_computed_by_hand() -> None:
    load = LoadCase(name="two", jobs=(Job(10.0, 3.0), Job(11.0, 2.0)))
    cluster = Cluster(
        Timeline(), load.jobs, Conditions(start_seconds=1.0, start_spread=0.0), seed=1
    )
    cluster.timeline.at(10.0, lambda: cluster.scale(1))
    cluster.timeline.at(20.0, lambda: cluster.scale(0))
    cluster.timeline.run(load.end)
    summary = Summary.of(cluster, load)
    assert (summary.wait_p50, summary.wait_p99) == (1.0, 3.0)
    assert summary.pod_seconds == pytest.approx(10.1)
    assert (summary.first_done, summary.all_done) == (4.0, 6.0)
    assert (summary.removed, summary.removed_busy, summary.killed, summary.unfinished) == (
        1,
        0,
        0,
        0,
    )
    assert summary.largest == 1


def summary(wait: float, cost: float) -> Summary:
    return Summary(
        wait_p50=0.0,
        wait_p99=wait,
        pod_seconds=cost,
        oscillations=1,
        removed=4,
        removed_busy=2,
        killed=1,
        unfinished=0,
        first_done=1.0,
        all_done=2.0,
        largest=3,
    )


def test_pooled_times_are_medians_costs_means_and_counts_sums() -> None:
    pooled = Summary.pooled([summary(1.0, 10), summary(9.0, 40), summary(2.0, 10)])
    assert (pooled.wait_p99, pooled.pod_seconds) == (2.0, 20.0)
    assert (pooled.oscillations, pooled.removed, pooled.removed_busy, pooled.killed) == (
        3,
        12,
        6,
        3,
    )


def test_the_best_at_no_more_cost_is_what_counts() -> None:
    ours = {"a": summary(1.0, 120), "b": summary(2.0, 100), "c": summary(3.0, 90)}
    found = match("theirs", summary(8.0, 100), ours)
    assert (found.ours, found.wait_ratio, found.cost_ratio) == ("b", 0.25, 1.0)
    found = match("theirs", summary(8.0, 60), ours)
    assert (found.ours, found.cost_ratio) == ("c", 1.5), "where each costs more, the cheapest"
