"""How many items of TaskBatches a queue may have on their way at once. Pure.

A batch could fill the broker's queue with its items; a Task that is published behind them would
wait for them all. So beside those that run there are as many as the workers start within one mean
run time: a Task of the same priority starts within about twice that. Where runs are short, what
takes time is the way to the operator and back, and there are as many as are run in that time.
"""

from __future__ import annotations

#: For how long the workers must have items at hand, in seconds.
ROUND_TRIP_SECONDS = 0.2
#: No run is counted as shorter, in seconds: below that other things take the time.
_SHORTEST_RUN_SECONDS = 0.001
#: Items on their way while no worker is known: the first ones find some to do.
_UNKNOWN_SLOTS_WINDOW = 8
#: Items on their way, at most.
LARGEST_WINDOW = 1_000
#: The weight of a further run time in their mean is one over this.
_RECENT_RUNS = 20


class MeanRun:
    """The mean run time of the latest items of a queue, in seconds; None until one is known."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float) -> None:
        """Count a run."""
        if self.seconds is None:
            self.seconds = seconds
        else:
            self.seconds += (seconds - self.seconds) / _RECENT_RUNS


def items_window(*, slots: int, mean_run_seconds: float | None, max_published: int) -> int:
    """Return how many items of a queue may be at the broker and with workers.

    Args:
        slots: runs of all workers together; 0: not known.
        mean_run_seconds: of the latest items; None: not known.
        max_published: of the TaskQueue.
    """
    if not slots:
        return min(_UNKNOWN_SLOTS_WINDOW, max_published)
    ahead = 1.0
    if mean_run_seconds is not None:
        ahead = max(1.0, ROUND_TRIP_SECONDS / max(mean_run_seconds, _SHORTEST_RUN_SECONDS))
    return max(1, min(slots + int(slots * ahead), LARGEST_WINDOW, max_published))
