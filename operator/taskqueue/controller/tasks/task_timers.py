"""Times at which Tasks are to be woken: a tuple in a heap for each, and one timer of the loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

#: Tasks woken in one turn of the loop; the rest follows in the next.
_TASKS_A_TURN = 1_000
#: A timer of the loop may fire so much too early.
_EARLY_SECONDS = 0.001
#: Entries that hold no more which the heap may have, beside as many as do, before it is rebuilt.
_SLACK = 64


class TaskTimers:
    """Wakes each Task at its time, once.

    Args:
        on_due: called with the uid of a Task whose time has come.
    """

    def __init__(self, on_due: Callable[[str], None]) -> None:
        self._on_due = on_due
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many Tasks are to be woken."""
        return len(self._due)

    def set(self, uid: str, seconds: float) -> None:
        """Wake a Task after some seconds, and not when it was to be woken before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        self._due[uid] = at
        heapq.heappush(self._heap, (at, uid))
        self._drop_stale()
        if self._heap[0][1] == uid:
            self._arm(loop)

    def cancel(self, uid: str) -> bool:
        """Do not wake a Task; return whether it was to be woken."""
        was = self._due.pop(uid, None) is not None
        if was:
            self._drop_stale()
        return was

    def pop_all(self) -> list[str]:
        """Wake nobody any more; return who was to be woken."""
        uids, self._due, self._heap = list(self._due), {}, []
        return uids

    def _wake(self) -> None:
        self._handle = None
        loop = asyncio.get_running_loop()
        now = loop.time() + _EARLY_SECONDS
        woken: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(woken) < _TASKS_A_TURN:
            at, uid = heapq.heappop(self._heap)
            if self._due.get(uid) == at:
                del self._due[uid]
                woken.append(uid)
        self._arm(loop)
        for uid in woken:
            self._on_due(uid)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._handle is not None:
            self._handle.cancel()
        first = self._heap[0][0] if self._heap else None
        self._handle = None if first is None else loop.call_at(first, self._wake)

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(at, uid) for uid, at in self._due.items()]
            heapq.heapify(self._heap)
