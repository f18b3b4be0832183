"""Many short-lived deadlines, one timer.

A loop timer for every attempt costs more than a short attempt itself. Here a deadline that is
dropped in time costs two dict operations; the one timer is set for the earliest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Calls ``on_due(key)`` once the loop's clock has reached the key's deadline."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[K], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._due: dict[K, float] = {}
        self._timer: asyncio.Handle | None = None
        #: When the timer goes off, if there is one. Not asked of it: what uvloop returns for a time
        #: that has come is no `asyncio.TimerHandle`.
        self._timer_at = 0.0

    def set(self, key: K, when: float) -> None:
        """Set or move the key's deadline to a time of the loop's clock."""
        self._due[key] = when
        if self._timer is None or when < self._timer_at:
            self._set_timer(when)

    def set_first(self, key: K, when: float) -> None:
        """Set the key's deadline, unless it has an earlier one."""
        if self._due.get(key, when) >= when:
            self.set(key, when)

    def drop(self, key: K) -> None:
        """Remove the key's deadline, if it has one."""
        self._due.pop(key, None)

    def close(self) -> None:
        """Remove all deadlines."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            for key in [key for key, when in self._due.items() if when <= now]:
                if self._due.get(key, now + 1) <= now:  # else it was dropped or moved meanwhile
                    del self._due[key]
                    self._on_due(key)
        finally:  # what raises takes away no other deadline
            if self._due:
                self._set_timer(min(self._due.values()))
            elif self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(when, self._on_timer), when
