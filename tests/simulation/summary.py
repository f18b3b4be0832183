"""The summary of a simulated run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median

from tests.bench.statistics import percentile, significant
from tests.simulation.cluster import Cluster
from tests.simulation.loads import LoadCase

#: A shrink that is reversed within this time, in seconds, was unnecessary. It is the HPA's default
#: wait before shrinking, and longer than any setting here.
OSCILLATION_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Waiting times, cost and disturbances of a run.

    Attributes:
        wait_p50: median of the seconds from arrival to the first start.
        wait_p99: its 99th percentile.
        pod_seconds: of all pods, from creation to removal.
        oscillations: see `oscillations`; 0 for a load that is never steady.
        removed: pods that were deleted with a worker in them.
        removed_busy: those of them that were running messages.
        killed: messages whose run was killed.
        unfinished: messages not finished at the end; if not 0, the run was too short.
        first_done: seconds from the first arrival to the first end.
        all_done: seconds from the first arrival to the last end.
        largest: the most replicas requested.
    """

    wait_p50: float
    wait_p99: float
    pod_seconds: float
    oscillations: int
    removed: int
    removed_busy: int
    killed: int
    unfinished: int
    first_done: float
    all_done: float
    largest: int

    @classmethod
    def of(cls, cluster: Cluster, load: LoadCase) -> Summary:
        """Return the summary of a run that has ended."""
        waits = [
            (work.started if work.started is not None else load.end) - work.job.arrives
            for work in cluster.works
        ]
        ends = [work.ended for work in cluster.works if work.ended is not None]
        first = load.jobs[0].arrives
        return cls(
            wait_p50=percentile(waits, 50),
            wait_p99=percentile(waits, 99),
            pod_seconds=cluster.cost_until(load.end),
            oscillations=oscillations(cluster.sizes, load.steady) if load.steady else 0,
            removed=cluster.removed,
            removed_busy=cluster.removed_busy,
            killed=cluster.killed,
            unfinished=cluster.unfinished,
            first_done=min(ends, default=load.end) - first,
            all_done=max(ends, default=load.end) - first,
            largest=max(size for _, size in cluster.sizes),
        )

    @classmethod
    def pooled(cls, runs: Sequence[Summary]) -> Summary:
        """Return medians of times, the mean of pod-seconds, and sums of counts."""
        return cls(
            wait_p50=median(run.wait_p50 for run in runs),
            wait_p99=median(run.wait_p99 for run in runs),
            pod_seconds=fmean(run.pod_seconds for run in runs),
            oscillations=sum(run.oscillations for run in runs),
            removed=sum(run.removed for run in runs),
            removed_busy=sum(run.removed_busy for run in runs),
            killed=sum(run.killed for run in runs),
            unfinished=sum(run.unfinished for run in runs),
            first_done=median(run.first_done for run in runs),
            all_done=median(run.all_done for run in runs),
            largest=max(run.largest for run in runs),
        )

    def as_dict(self) -> dict[str, float]:
        """Return the summary with four significant digits."""
        return {name: significant(value) for name, value in asdict(self).items()}


def oscillations(sizes: Sequence[tuple[float, int]], window: tuple[float, float]) -> int:
    """Return how often a shrink was followed by a growth within `OSCILLATION_SECONDS`.

    Both must lie within the window. Consecutive growths count as one, and so do shrinks.

    Args:
        sizes: (time, size) at the start and at every change.
        window: the start and end of the time when the load is steady.
    """
    count, shrunk_at = 0, None
    for (_, before), (at, after) in pairwise(sizes):
        if not window[0] <= at <= window[1]:
            continue
        if after < before:
            shrunk_at = at
        elif shrunk_at is not None:
            count += at - shrunk_at <= OSCILLATION_SECONDS
            shrunk_at = None
    return count
