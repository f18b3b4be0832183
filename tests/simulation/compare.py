"""Compares our scaling with KEDA's on one load: how long does work wait at no more pod-seconds?

The comparison fixes the cost: for each of KEDA's settings it picks the one of ours that costs no
more and lets work wait the least. The default setting is reported too, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.simulation.cluster import Conditions
from tests.simulation.loads import Make
from tests.simulation.summary import Summary
from tests.simulation.systems import System, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One of KEDA's settings, and our best against it.

    Attributes:
        theirs: the name of KEDA's setting.
        ours: the name of our setting that costs no more pod-seconds and waits the least; where each
            costs more, of the cheapest.
        wait_ratio: our 99th percentile of waiting divided by theirs.
        cost_ratio: our pod-seconds divided by theirs; above 1: each of ours costs more.
    """

    theirs: str
    ours: str
    wait_ratio: float
    cost_ratio: float


def run(
    systems: Sequence[System], make: Make, conditions: Conditions, *, seeds: Sequence[int]
) -> dict[str, Summary]:
    """Return each system's summary, of all seeds together."""
    cases = [(seed, make(seed)) for seed in seeds]
    return {
        system.name: Summary.pooled(
            [simulate(system, load, conditions, seed=seed) for seed, load in cases]
        )
        for system in systems
    }


def match(theirs: str, summary: Summary, ours: Mapping[str, Summary]) -> Match:
    """Return our best against one of KEDA's settings."""
    cheapest = min(ours, key=lambda name: ours[name].pod_seconds)
    within = [name for name in ours if ours[name].pod_seconds <= summary.pod_seconds]
    best = min(within or [cheapest], key=lambda name: ours[name].wait_p99)
    return Match(
        theirs=theirs,
        ours=best,
        wait_ratio=ours[best].wait_p99 / summary.wait_p99,
        cost_ratio=ours[best].pod_seconds / summary.pod_seconds,
    )
