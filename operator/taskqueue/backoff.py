"""Delays of a retry loop: exponential with jitter, without any I/O.

The jitter keeps the clients of a restarted server from coming back all at the same moment. A
success starts the delays over only when it has held: a server that accepts a connection and closes
it at once is not hammered.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable

#: Bound of the first delay, in seconds.
FIRST_SECONDS = 0.2

#: No delay is longer than this, in seconds.
LONGEST_SECONDS = 10.0

#: A connection that lived this long has worked, in seconds.
HELD_SECONDS = 5.0

#: Each bound is this much of the one before.
_FACTOR = 2.0


class Backoff:
    """Gives the delays of one retry loop.

    Args:
        first_seconds: bound of the first delay.
        longest_seconds: bound of the longest delay.
        held_seconds: how long a success must hold before the delays start over.
        random: gives numbers in [0, 1), as `random.random` does.
        clock: monotonic time in seconds; a loop with ``held_seconds`` gives its event loop's.
    """

    __slots__ = ("_bound", "_clock", "_first", "_held", "_longest", "_random", "_since")

    def __init__(
        self,
        *,
        first_seconds: float = FIRST_SECONDS,
        longest_seconds: float = LONGEST_SECONDS,
        held_seconds: float = 0.0,
        random: Callable[[], float] = _random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._held = held_seconds
        self._random = random
        self._clock = clock
        self._bound = first_seconds
        #: When the present success began; None: the last try failed.
        self._since: float | None = None

    def next_delay(self) -> float:
        """Return how long to wait before the next try; whatever succeeded before it has ended.

        Returns:
            Seconds in [bound / 2, bound), the bound growing by 2 from the first to the longest.
        """
        if self.has_held():
            self.reset()
        self._since = None
        delay = self._bound * (0.5 + 0.5 * self._random())
        self._bound = min(self._bound * _FACTOR, self._longest)
        return delay

    def succeeded(self) -> None:
        """Start the delays over once this success has held; call it when the try has succeeded."""
        self._since = self._clock()

    def has_held(self) -> bool:
        """Whether the present success has lasted long enough to start the delays over."""
        return self._since is not None and self._clock() - self._since >= self._held

    def reset(self) -> None:
        """Start the delays over now."""
        self._bound = self._first
