"""The order in which queued Tasks are published, and how many at a time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: The smallest window: enough to keep any pool busy for a round trip.
MIN_WINDOW = 64

#: The period over which the finish rate is counted.
_RATE_WINDOW_SECONDS = 5

#: Removed entries a queue may keep, beside as many as are waiting, before it is rebuilt.
_SLACK = 64


def window_size(*, max_published: int, slots: int, finished_in_5_seconds: int) -> int:
    """Return how many unfinished Tasks of a queue may be in RabbitMQ at once.

    Enough to keep the workers busy, few enough that priority, pausing and cancelling act on
    nearly everything that waits, and that a crash of the operator can repeat little.
    """
    return min(max_published, max(MIN_WINDOW, 2 * slots, finished_in_5_seconds))


class FinishRate:
    """Counts the Tasks finished in the last five seconds, by whole seconds."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, now: float) -> None:
        """Count a Task that finished now."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))

    def recent(self, now: float) -> int:
        """Return the count of the last five seconds."""
        while self._seconds and self._seconds[0][0] < now - _RATE_WINDOW_SECONDS:
            self._seconds.popleft()
        return sum(count for _, count in self._seconds)


class DispatchQueue(Generic[K]):
    """Keys in order of priority (higher first), then age (older first), then arrival.

    Removal is lazy: the entry of a removed key is skipped when it reaches the top, or dropped when
    such entries outnumber the others. Adding and removing cost O(log n) on average.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, K]] = []
        self._alive: dict[K, int] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._alive)

    def add(self, key: K, *, priority: int, created: float) -> None:
        """Put a key in its place; one already waiting is moved."""
        self._arrivals += 1
        self._alive[key] = self._arrivals
        heapq.heappush(self._heap, (-priority, created, self._arrivals, key))

    def discard(self, key: K) -> None:
        """Remove a key if it waits."""
        self._alive.pop(key, None)
        if len(self._heap) > 2 * len(self._alive) + _SLACK:
            self._heap = [one for one in self._heap if self._alive.get(one[3]) == one[2]]
            heapq.heapify(self._heap)

    def pop(self) -> K | None:
        """Remove and return the first key; None when the queue is empty."""
        while self._heap:
            _, _, arrival, key = heapq.heappop(self._heap)
            if self._alive.get(key) == arrival:
                del self._alive[key]
                return key
        return None
