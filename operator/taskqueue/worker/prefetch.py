"""How many unacknowledged deliveries a worker may have: a pure rule.

As many as slots is always right. Runs shorter than the round trip to the broker leave slots idle
between them, so more is prefetched while runs are short. Two things lower the prefetch at once: a
run that is not short (the surplus would wait behind it while other workers idle), and a redelivery
(it may be what killed its last worker, and every delivery beside it would be counted as lost too).
"""

from __future__ import annotations

#: The prefetch while runs are short; a worker with more slots prefetches as many as its slots.
AHEAD = 64

#: Mean run time, in seconds, at which runs are no longer short.
SHORT_SECONDS = 0.05

#: Below this mean the prefetch is raised; the gap keeps it from oscillating.
RAISE_SECONDS = 0.025

#: Runs seen, since the start or the last lowering, before the prefetch is raised.
ENOUGH_RUNS = 50

#: After the last redelivery the prefetch is not raised for this long, in seconds.
CAUTION_SECONDS = 60.0

#: Weight of the newest run in the mean: about the last 50 runs count.
_WEIGHT = 0.02


class PrefetchRule:
    """Computes the prefetch from run times and redeliveries; times are of one monotonic clock."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean = SHORT_SECONDS
        self._runs = 0
        self._cautious_until = float("-inf")
        self._raised = False

    def on_run_ended(self, seconds: float) -> None:
        """Count a run that took this long."""
        self._runs += 1
        self._mean += _WEIGHT * (seconds - self._mean)
        if self._mean >= SHORT_SECONDS:
            self._lower()

    def on_long_run(self, seconds: float) -> None:
        """Lower the prefetch for a run that has not ended after this long."""
        self._mean = max(self._mean, seconds)
        self._lower()

    def on_redelivery(self, now: float) -> None:
        """Lower the prefetch for a while."""
        self._cautious_until = now + CAUTION_SECONDS
        self._lower()

    def update(self, now: float) -> int:
        """Raise the prefetch if it is time to, and return it."""
        if not self._raised:
            self._raised = (
                self._runs >= ENOUGH_RUNS
                and self._mean < RAISE_SECONDS
                and now >= self._cautious_until
            )
        return max(self._slots, AHEAD) if self._raised else self._slots

    def _lower(self) -> None:
        if self._raised:
            self._raised = False
            self._runs = 0
