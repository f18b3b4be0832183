"""The order in which queued Tasks are published."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Removed entries a queue may keep, beside as many as are waiting, before it is rebuilt.
_SLACK = 64


class DispatchQueue(Generic[K]):
    """Keys in order of priority (higher first), then age (older first), then arrival.

    Removal is lazy: the entry of a removed key is skipped when it reaches the top, or dropped when
    such entries outnumber the others. Adding and removing cost O(log n) on average.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, K]] = []
        #: The arrival number of each key that waits. Changed only here.
        self.places: dict[K, int] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self.places)

    def add(self, key: K, *, priority: int, created: float) -> None:
        """Put a key in its place; one already waiting is moved."""
        self._arrivals += 1
        self.places[key] = self._arrivals
        heapq.heappush(self._heap, (-priority, created, self._arrivals, key))

    def discard(self, key: K) -> None:
        """Remove a key if it waits."""
        self.places.pop(key, None)
        if len(self._heap) > 2 * len(self.places) + _SLACK:
            self._heap = [one for one in self._heap if self.places.get(one[3]) == one[2]]
            heapq.heapify(self._heap)

    def pop(self) -> K | None:
        """Remove and return the first key; None when the queue is empty."""
        while self._heap:
            _, _, arrival, key = heapq.heappop(self._heap)
            if self.places.get(key) == arrival:
                del self.places[key]
                return key
        return None
