"""Concurrency keys: who holds a key, and who waits for it.

At most a given number of holders have a key at once. What a former operator recorded is taken as
it is, even above the limit (a limit lowered, say): then nobody new gets the key until enough have
given it back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from taskqueue.controller.tasks.dispatch_queue import DispatchQueue

H = TypeVar("H", bound=Hashable)


class KeySlots(Generic[H]):
    """The keys of one TaskQueue. A holder is whatever the caller tells apart."""

    def __init__(self) -> None:
        self._holders: dict[str, set[H]] = {}
        self._lines: dict[str, DispatchQueue[H]] = {}

    def __iter__(self) -> Iterator[H]:
        """Yield everybody who waits for a key, in no order."""
        for line in self._lines.values():
            yield from line

    @property
    def waiting(self) -> int:
        """How many wait for a key."""
        return sum(len(line) for line in self._lines.values())

    @property
    def keys_waited_for(self) -> tuple[str, ...]:
        """The keys somebody waits for."""
        return tuple(self._lines)

    def claim(self, key: str, holder: H, *, limit: int) -> bool:
        """Give the key to ``holder`` if fewer than ``limit`` have it; tell whether it has it."""
        holders = self._holders.setdefault(key, set())
        if holder not in holders and len(holders) >= limit:
            return False
        holders.add(holder)
        return True

    def take(self, key: str, holder: H) -> None:
        """Give the key to ``holder``, who has it already by what is recorded."""
        self._holders.setdefault(key, set()).add(holder)

    def release(self, key: str, holder: H) -> None:
        """Take the key from ``holder``; harmless for one who has it not."""
        holders = self._holders.get(key)
        if holders is not None:
            holders.discard(holder)
            if not holders:
                del self._holders[key]

    def wait(self, key: str, holder: H, *, priority: int, created: float) -> None:
        """Put ``holder`` into the key's line."""
        line = self._lines.setdefault(key, DispatchQueue())
        line.add(holder, priority=priority, created=created)

    def leave(self, key: str, holder: H) -> None:
        """Take ``holder`` out of the key's line if it waits there."""
        line = self._lines.get(key)
        if line is not None:
            line.discard(holder)
            if not line:
                del self._lines[key]

    def next(self, key: str, *, limit: int) -> H | None:
        """Take the first out of the key's line, if the key has room for one more."""
        line = self._lines.get(key)
        if line is None or len(self._holders.get(key, ())) >= limit:
            return None
        first = line.pop()
        if not line:
            del self._lines[key]
        return first
