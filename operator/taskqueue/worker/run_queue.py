"""Runs without a slot yet, in the order they came; redelivered ones come last.

A redelivered message may be what killed its last worker. It starts when nothing else is queued, so
that another loss costs the fewest neighbours a delivery.
"""

from __future__ import annotations

from collections import deque


class RunQueue:
    """Queues the ids of runs until a slot is free; any of them can be removed before."""

    def __init__(self) -> None:
        self._fresh: deque[int] = deque()
        self._redelivered: deque[int] = deque()

    def __len__(self) -> int:
        """Return how many are queued."""
        return len(self._fresh) + len(self._redelivered)

    @property
    def run_ids(self) -> tuple[int, ...]:
        """All, in the order in which they start."""
        return (*self._fresh, *self._redelivered)

    def put(self, run_id: int, *, redelivered: bool) -> None:
        """Add a run."""
        (self._redelivered if redelivered else self._fresh).append(run_id)

    def pop(self) -> int | None:
        """Remove and return the next one to start, or None."""
        if self._fresh:
            return self._fresh.popleft()
        return self._redelivered.popleft() if self._redelivered else None

    def remove(self, run_id: int, *, redelivered: bool) -> None:
        """Remove a run."""
        (self._redelivered if redelivered else self._fresh).remove(run_id)
