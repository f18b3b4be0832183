"""Runs without a slot yet, in the order they came; redelivered ones come last.

A redelivered message may be what killed its last worker. It starts when nothing else is queued, so
that another loss costs the fewest neighbours a delivery.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from taskqueue.worker.runs import Run


class RunQueue:
    """Queues runs until a slot is free; any of them can be removed before."""

    def __init__(self) -> None:
        self._fresh: deque[Run] = deque()
        self._redelivered: deque[Run] = deque()

    def __len__(self) -> int:
        """Return how many are queued."""
        return len(self._fresh) + len(self._redelivered)

    def put(self, run: Run) -> None:
        """Add a run."""
        (self._redelivered if run.deliveries else self._fresh).append(run)

    def pop(self) -> Run | None:
        """Remove and return the next one to start, or None."""
        if self._fresh:
            return self._fresh.popleft()
        return self._redelivered.popleft() if self._redelivered else None

    def pop_all(self, matching: Callable[[Run], bool] = lambda run: True) -> list[Run]:
        """Remove and return all that match, in their order."""
        runs = [*self._fresh, *self._redelivered]
        popped = [run for run in runs if matching(run)]
        if popped:
            left = [run for run in runs if run not in popped]
            self._fresh = deque(run for run in left if not run.deliveries)
            self._redelivered = deque(run for run in left if run.deliveries)
        return popped
