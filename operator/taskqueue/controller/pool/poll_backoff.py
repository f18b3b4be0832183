"""When to look at the pods of a pool: at once when something changed, rarely while nothing does."""

from __future__ import annotations

from collections.abc import Hashable

#: Looks are so far apart, in seconds, but for workers that have just stopped.
FIRST_PAUSE_SECONDS = 0.5
#: While nothing changes the pause doubles, up to this.
LONGEST_PAUSE_SECONDS = 5.0


class PollBackoff:
    """See the module's contract; times are seconds of any one monotonic clock."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._pause = FIRST_PAUSE_SECONDS
        self._situation: Hashable = None
        self._stopped: frozenset[str] = frozenset()

    def due(
        self,
        situation: Hashable,
        stopped: frozenset[str],
        now: float,
        *,
        longest: float = LONGEST_PAUSE_SECONDS,
    ) -> bool:
        """Tell whether to look now; if so, that counts as done.

        Args:
            situation: what the pool is like; a look is due soon after it has changed.
            stopped: the workers that have stopped; one more is looked at at once.
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
