"""The most messages of a queue's own Tasks that can have been at the broker at once."""

from __future__ import annotations

from collections import deque

#: How long a Task that has ended may still be among the broker's messages: its worker acknowledges
#: at about the time the operator handles the outcome, and the statistics are sampled.
LATE_SECONDS = 1.0


class PublishedPeak:
    """Tracks the most messages of own Tasks that can have been at the broker at once.

    A Task counts for `LATE_SECONDS` after it stops being published.
    """

    def __init__(self) -> None:
        self._published = 0
        self._removed: deque[float] = deque()
        self._most = 0

    def add(self, now: float) -> None:
        """Count a Task that is published now."""
        self._published += 1
        self._most = max(self._most, self._present(now))

    def remove(self, now: float) -> None:
        """Count a Task that is no longer published."""
        self._published -= 1
        self._removed.append(now)

    def pop(self, now: float) -> int:
        """Return the peak since the last call, and start over from the present count."""
        present = self._present(now)
        most, self._most = max(self._most, present), present
        return most

    def _present(self, now: float) -> int:
        while self._removed and self._removed[0] < now - LATE_SECONDS:
            self._removed.popleft()
        return self._published + len(self._removed)
