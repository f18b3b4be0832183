"""Runs without a slot yet, in the order they came; those the broker had delivered before come last.

A delivery that comes again may be what killed its last worker. It is begun when nothing else waits,
so that another loss costs the fewest neighbours a delivery.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from taskqueue.worker.runs import Run


class RunQueue:
    """A queue of runs, out of which any can be taken."""

    def __init__(self) -> None:
        self._fresh: deque[Run] = deque()
        self._careful: deque[Run] = deque()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._fresh) + len(self._careful)

    def put(self, run: Run) -> None:
        """Add a run."""
        (self._careful if run.deliveries else self._fresh).append(run)

    def pop(self) -> Run | None:
        """Take out the next one to begin, or None."""
        if self._fresh:
            return self._fresh.popleft()
        return self._careful.popleft() if self._careful else None

    def take(self, wanted: Callable[[Run], bool] = lambda run: True) -> list[Run]:
        """Take out all that are wanted, in their order."""
        runs = [*self._fresh, *self._careful]
        taken = [run for run in runs if wanted(run)]
        if taken:
            left = [run for run in runs if run not in taken]
            self._fresh = deque(run for run in left if not run.deliveries)
            self._careful = deque(run for run in left if run.deliveries)
        return taken
