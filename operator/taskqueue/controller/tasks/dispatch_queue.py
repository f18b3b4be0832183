"""The order in which queued Tasks are published."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from taskqueue.model.task import Task

K = TypeVar("K", bound=Hashable)

#: Removed entries a queue may keep, beside as many as are waiting, before it is rebuilt.
_SLACK = 64


class DispatchQueue(Generic[K]):
    """Keys in order of priority (higher first), then age (older first), then arrival.

    Removal is lazy: the entry of a removed key is skipped when it reaches the top, or dropped when
    such entries outnumber the others. Adding and removing cost O(log n) on average.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, float, int, K]] = []
        #: The arrival number of each key that waits. Changed only here.
        self.places: dict[K, int] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self.places)

    def add(self, key: K, *, priority: float, created: float) -> None:
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


class PriorityQueue(DispatchQueue[str]):
    """The waiting Tasks of a TaskQueue without spec.flow, by uid.

    `taskqueue.controller.tasks.flow.flow_queue.FlowQueue` takes its place where there is one, and
    says what the methods mean. Here each Task that waits may be dispatched.
    """

    policy = None
    excess = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def queue_up(self, task: Task) -> bool:
        """Let a Task wait for its turn."""
        self.add(task.uid, priority=task.spec.priority, created=task.created)
        return True

    def pop_next(self, now: float) -> str | None:
        """Remove and return the Task whose turn it is."""
        return self.pop()

    def take(self, task: Task, now: float) -> bool:
        """Count an attempt as dispatched."""
        return True

    def wait_seconds(self, now: float) -> float | None:
        """Return how long `pop_next` gives nothing though Tasks wait: never."""
        return None

    def limited_by(self, now: float) -> str:
        """Return the name of a rate limit that holds all that waits back: there is none."""
        return ""

    def window(self, window: int, slots: int) -> int:
        """Return how many Tasks may be at the broker."""
        return window
