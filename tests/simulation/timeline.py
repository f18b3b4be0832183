"""Virtual time: planned calls happen in order, and cost no real time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Call = Callable[[], None]


class Timeline:
    """Calls what was planned, the earliest first; of the same moment, in the order of planning.

    Attributes:
        now: seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._plans: list[tuple[float, int, Call]] = []
        self._count = 0

    def at(self, moment: float, call: Call) -> None:
        """Call it at this moment; one that has passed is now."""
        self._count += 1
        heapq.heappush(self._plans, (max(moment, self.now), self._count, call))

    def after(self, seconds: float, call: Call) -> None:
        """Call it in this many seconds."""
        self.at(self.now + seconds, call)

    def every(self, seconds: float, call: Call, *, first: float) -> None:
        """Call it at ``first``, and then at intervals."""

        def call_and_repeat() -> None:
            call()
            self.after(seconds, call_and_repeat)

        self.at(first, call_and_repeat)

    def run(self, until: float) -> None:
        """Let time pass until then, and not beyond."""
        while self._plans and self._plans[0][0] <= until:
            self.now, _, call = heapq.heappop(self._plans)
            call()
        self.now = until
