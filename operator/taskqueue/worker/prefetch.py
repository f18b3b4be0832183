"""How many deliveries a worker may have in hand: a pure rule, fed with what it sees.

As many as slots is always right. Runs shorter than the round trip to the broker leave the slots
idle between them, so while runs are short more are fetched ahead. Two things bring it back at
once: a run that is not short (what is fetched ahead would wait behind it while other workers
idle), and a delivery the broker had delivered before (it may be what killed its last worker, and
whatever is in hand beside it is counted as lost too).
"""

from __future__ import annotations

#: Fetched ahead while runs are short; more slots than this fetch as many as there are slots.
AHEAD = 64

#: Mean run time, in seconds, at which runs are no longer short.
SHORT_SECONDS = 0.05

#: Below this mean the prefetch is raised; the gap keeps it from going to and fro.
RAISE_SECONDS = 0.025

#: Runs seen, since the start or the last lowering, before the prefetch is raised.
ENOUGH_RUNS = 50

#: After the last redelivery nothing is fetched ahead for this long, in seconds.
CAUTION_SECONDS = 60.0

#: Weight of the newest run in the mean: about the last 50 runs count.
_WEIGHT = 0.02


class PrefetchRule:
    """Says what the prefetch should be; times are seconds of any one monotonic clock."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean = SHORT_SECONDS
        self._runs = 0
        self._cautious_until = float("-inf")
        self._raised = False

    def ran(self, seconds: float) -> None:
        """A run took this long, or runs this long already."""
        self._runs += 1
        self._mean += _WEIGHT * (seconds - self._mean)
        if self._mean >= SHORT_SECONDS:
            self._lower()

    def runs_long(self, seconds: float) -> None:
        """A run has not ended after this long: runs count as that long until shown otherwise."""
        self._mean = max(self._mean, seconds)
        self._lower()

    def redelivered(self, now: float) -> None:
        """A delivery came that the broker had delivered before."""
        self._cautious_until = now + CAUTION_SECONDS
        self._lower()

    def prefetch(self, now: float) -> int:
        """Return how many deliveries to have in hand at most."""
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
