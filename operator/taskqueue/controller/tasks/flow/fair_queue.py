"""Tasks in groups that share what is dispatched by weight: self-clocked fair queueing.

Each group has a virtual time, which grows by 1 / weight with each Task that it gives. The next Task
comes from the group whose time is least after that, and its time is then that of the queue. So
groups that all wait give in proportion to their weights. A group that was empty begins at the time
of the queue: what it did not use is lost. However many new groups come, one that waits has its turn
before any that comes after the time of its turn. Within a group Tasks are ordered as in a
`DispatchQueue`.

A group may be set aside for a while, because a rate limit holds it back. It keeps its time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from taskqueue.controller.tasks.dispatch_queue import DispatchQueue

K = TypeVar("K", bound=Hashable)

#: Times of empty groups kept beside as many as have Tasks, before those that say nothing go.
_SLACK = 64


class FairQueue(Generic[K]):
    """Keys in groups; see the module.

    Args:
        weight_of: the weight of a group, at least 1.
    """

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        #: Group, rank and creation of each key that waits. Changed only here.
        self.places: dict[K, tuple[str, float, float]] = {}
        self._queues: dict[str, DispatchQueue[K]] = {}
        #: The virtual time of each group, and of the queue.
        self._times: dict[str, float] = {}
        self._time = 0.0
        #: (virtual time after the next Task, number, group) of those that may give; an entry whose
        #: number is not that of the group is skipped.
        self._heap: list[tuple[float, int, str]] = []
        self._entry_of: dict[str, int] = {}
        self._entries = 0
        #: (until, group) of those that are set aside.
        self._aside: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[K]:
        return iter(self.places)

    def add(self, key: K, *, rank: float, created: float, group: str) -> None:
        """Put a key into its group; one already waiting is moved.

        Args:
            key: of the Task.
            rank: higher first.
            created: older first, of one rank.
            group: its fairness key.
        """
        self.discard(key)
        queue = self._queues.get(group)
        if queue is None:
            queue = self._queues[group] = DispatchQueue()
            self._times[group] = max(self._times.get(group, 0.0), self._time)
            self._enter(group)
        queue.add(key, priority=rank, created=created)
        self.places[key] = (group, rank, created)

    def discard(self, key: K) -> bool:
        """Remove a key; return whether it waited."""
        entry = self.places.pop(key, None)
        if entry is None:
            return False
        group = entry[0]
        self._queues[group].discard(key)
        self._leave_if_empty(group)
        return True

    def next_group(self, now: float) -> str | None:
        """Return the group that gives next; None: none may now."""
        while self._aside and self._aside[0][0] <= now:
            _, group = heapq.heappop(self._aside)
            if group in self._queues:
                self._enter(group)
        while self._heap:
            _, entry, group = self._heap[0]
            if self._entry_of.get(group) == entry:
                return group
            heapq.heappop(self._heap)
        return None

    def set_aside(self, group: str, until: float) -> None:
        """Let a group give nothing until then."""
        self._entry_of.pop(group, None)
        heapq.heappush(self._aside, (until, group))

    def end_of_break(self) -> float | None:
        """Return when the next group that was set aside may give again; None: none was."""
        while self._aside and self._aside[0][1] not in self._queues:
            heapq.heappop(self._aside)
        return self._aside[0][0] if self._aside else None

    def first_set_aside(self) -> str | None:
        """Return the group that was set aside and may give again first; None: none was."""
        return self._aside[0][1] if self.end_of_break() is not None else None

    def pop(self, group: str) -> K:
        """Remove and return the first key of a group that has one, and charge the group for it."""
        return self.pop_entry(group)[0]

    def pop_entry(self, group: str) -> tuple[K, float, float]:
        """Do as `pop`, and return the key's rank and creation too."""
        key = self._queues[group].pop()
        if key is None:
            raise LookupError(f"group {group!r} has nothing")
        _, rank, created = self.places.pop(key)
        self._times[group] += 1 / self._weight_of(group)
        self._time = max(self._time, self._times[group])
        self._leave_if_empty(group)
        if group in self._queues:
            self._enter(group)
        return key, rank, created

    def refund(self, group: str) -> None:
        """Take back what a group was charged for its last key, which was not dispatched."""
        if group in self._times:
            self._times[group] -= 1 / self._weight_of(group)
            if group in self._entry_of:
                self._enter(group)

    def _enter(self, group: str) -> None:
        self._entries += 1
        self._entry_of[group] = self._entries
        finish = self._times[group] + 1 / self._weight_of(group)
        heapq.heappush(self._heap, (finish, self._entries, group))
        if len(self._heap) > 2 * len(self._entry_of) + _SLACK:
            self._heap = [one for one in self._heap if self._entry_of.get(one[2]) == one[1]]
            heapq.heapify(self._heap)

    def _leave_if_empty(self, group: str) -> None:
        if self._queues[group]:
            return
        del self._queues[group]
        self._entry_of.pop(group, None)
        if len(self._times) > 2 * len(self._queues) + _SLACK:
            self._times = {
                one: at for one, at in self._times.items() if at > self._time or one in self._queues
            }
