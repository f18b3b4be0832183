"""Ours beside KEDA on one load: at no more pod-seconds, how long does work wait?

Both ends of a trade are looked at: for each of KEDA's settings, the one of ours that costs no more
and lets work wait the least. The default setting is told beside it, whatever it costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.simulation.cluster import Conditions
from tests.simulation.figures import Figures
from tests.simulation.loads import Make
from tests.simulation.systems import System, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One of KEDA's settings, and ours against it.

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
) -> dict[str, Figures]:
    """Return each system's figures, of all seeds together."""
    cases = [(seed, make(seed)) for seed in seeds]
    return {
        system.name: Figures.pooled(
            [simulate(system, load, conditions, seed=seed) for seed, load in cases]
        )
        for system in systems
    }


def match(theirs: str, figures: Figures, ours: Mapping[str, Figures]) -> Match:
    """Return our best against one of KEDA's settings."""
    cheapest = min(ours, key=lambda name: ours[name].pod_seconds)
    within = [name for name in ours if ours[name].pod_seconds <= figures.pod_seconds]
    best = min(within or [cheapest], key=lambda name: ours[name].wait_p99)
    return Match(
        theirs=theirs,
        ours=best,
        wait_ratio=ours[best].wait_p99 / figures.wait_p99,
        cost_ratio=ours[best].pod_seconds / figures.pod_seconds,
    )
