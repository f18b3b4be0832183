"""Concurrency keys: who holds a key, and who waits for it.

At most a given number of holders have a key at once. Claims recorded by a former operator stand
even above the limit, for example after the limit was lowered. Then no new holder gets the key
until enough have released it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

from taskqueue.controller.tasks.dispatch_queue import DispatchQueue

H = TypeVar("H", bound=Hashable)


class KeySlots(Generic[H]):
    """The keys of one TaskQueue, their holders, and the queue of each key.

    A holder is any hashable value.
    """

    def __init__(self) -> None:
        self._holders: dict[str, set[H]] = {}
        self._queues: dict[str, DispatchQueue[H]] = {}

    @property
    def keys_waited_for(self) -> tuple[str, ...]:
        """The keys with a queue."""
        return tuple(self._queues)

    def holders(self, key: str) -> Collection[H]:
        """Return who has a key."""
        return self._holders.get(key, ())

    def has_room(self, key: str, holder: H, *, limit: int) -> bool:
        """Return whether ``holder`` has the key, or would get it now."""
        holders = self._holders.get(key, ())
        return holder in holders or len(holders) < limit

    def claim(self, key: str, holder: H, *, limit: int) -> bool:
        """Give the key to ``holder`` if fewer than ``limit`` have it; return whether it has it."""
        holders = self._holders.setdefault(key, set())
        if holder not in holders and len(holders) >= limit:
            return False
        holders.add(holder)
        return True

    def assign(self, key: str, holder: H) -> None:
        """Give the key to ``holder`` whatever the limit, because its claim is on record."""
        self._holders.setdefault(key, set()).add(holder)

    def release(self, key: str, holder: H) -> None:
        """Release the key of ``holder``; does nothing if it does not have it."""
        holders = self._holders.get(key)
        if holders is not None:
            holders.discard(holder)
            if not holders:
                del self._holders[key]

    def enqueue(self, key: str, holder: H, *, priority: int, created: float) -> None:
        """Put ``holder`` into the key's queue."""
        queue = self._queues.setdefault(key, DispatchQueue())
        queue.add(holder, priority=priority, created=created)

    def stop_waiting(self, key: str, holder: H) -> None:
        """Remove ``holder`` from the key's queue if it waits there."""
        queue = self._queues.get(key)
        if queue is not None:
            queue.discard(holder)
            if not queue:
                del self._queues[key]

    def pop_next(self, key: str, *, limit: int) -> H | None:
        """Remove and return the next holder; None if the key has no room or nobody waits."""
        queue = self._queues.get(key)
        if queue is None or len(self._holders.get(key, ())) >= limit:
            return None
        first = queue.pop()
        if not queue:
            del self._queues[key]
        return first
