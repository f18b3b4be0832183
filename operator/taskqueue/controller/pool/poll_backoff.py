"""When to list the pods of a pool: at once after a change, rarely while nothing changes."""

from __future__ import annotations

from collections.abc import Hashable

#: Shortest time between two polls, in seconds, except when a worker has just stopped.
FIRST_PAUSE_SECONDS = 0.5
#: While nothing changes the pause doubles, up to this.
LONGEST_PAUSE_SECONDS = 5.0


class PollBackoff:
    """Decides when the next poll is due; times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._pause = FIRST_PAUSE_SECONDS
        self._situation: Hashable = None
        self._stopped: frozenset[str] = frozenset()

    def pop_due(
        self,
        situation: Hashable,
        stopped: frozenset[str],
        now: float,
        *,
        longest: float = LONGEST_PAUSE_SECONDS,
    ) -> bool:
        """Return whether a poll is due, and count it as done if so.

        Args:
            situation: the state of the pool; a poll is due soon after it has changed.
            stopped: the workers that have stopped; one more makes a poll due at once.
            now: the time.
            longest: the longest pause.
        """
        fresh = not stopped <= self._stopped
        changed = situation != self._situation
        pause = FIRST_PAUSE_SECONDS if changed else min(self._pause, longest)
        if now < self._last + pause and not fresh:
            return False
        self._pause = FIRST_PAUSE_SECONDS if fresh or changed else min(2 * pause, longest)
        self._last, self._situation, self._stopped = now, situation, stopped
        return True
