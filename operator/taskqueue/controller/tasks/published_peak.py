"""The most messages of a queue's own Tasks that can have been at the broker at once."""

from __future__ import annotations

from collections import deque

#: A Task that has ended may be among the broker's messages for so long: its worker acknowledges
#: about when the operator takes the outcome, the statistics count when they do.
LATE_SECONDS = 1.0


class PublishedPeak:
    """The most messages of own Tasks that can have been at the broker at once.

    A Task that is published no more counts on for `LATE_SECONDS`.
    """

    def __init__(self) -> None:
        self._published = 0
        self._left: deque[float] = deque()
        self._most = 0

    def came(self, now: float) -> None:
        """Take note that a Task is published."""
        self._published += 1
        self._most = max(self._most, self._present(now))

    def left(self, now: float) -> None:
        """Take note that a Task is published no more."""
        self._published -= 1
        self._left.append(now)

    def take(self, now: float) -> int:
        """Return the most since this was last called."""
        present = self._present(now)
        most, self._most = max(self._most, present), present
        return most

    def _present(self, now: float) -> int:
        while self._left and self._left[0] < now - LATE_SECONDS:
            self._left.popleft()
        return self._published + len(self._left)
