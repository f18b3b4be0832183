"""Finds the attempts that no worker will report any more.

The broker's queue hands out in order, so all but the last ``ready`` published are with a worker.
Messages of others make the count larger, and us more patient. While nobody could report, nobody is
late: then everybody gets the whole time again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from taskqueue.limits import REPORT_GRACE_SECONDS


class UnreportedAttempts:
    """Watches the attempts of one queue that are published, in the order of publishing.

    Args:
        timeout_of: the attempt timeout of a Task now, in seconds.
        clock: wall time in seconds.
        on_unreported: called with a uid, and since when a worker has had its attempt.
    """

    def __init__(
        self,
        *,
        timeout_of: Callable[[str], float],
        clock: Callable[[], float],
        on_unreported: Callable[[str, float], None],
    ) -> None:
        self._timeout_of = timeout_of
        self._clock = clock
        self._on_unreported = on_unreported
        #: Since when a worker has had it, by uid; None: as far as known none has.
        self._published: dict[str, float | None] = {}
        self._confirmed: set[str] = set()

    def __len__(self) -> int:
        return len(self._published)

    def __iter__(self) -> Iterator[str]:
        """Yield the uids in the order of publishing."""
        return iter(self._published)

    def add(self, uid: str) -> None:
        """Watch an attempt that is being published."""
        self._published[uid] = None
        self._confirmed.discard(uid)

    def discard(self, uid: str) -> bool:
        """Stop watching an attempt; return whether it was watched."""
        self._confirmed.discard(uid)
        if uid not in self._published:
            return False
        del self._published[uid]
        return True

    def mark_confirmed(self, uid: str) -> None:
        """Take note that the broker has the attempt's message."""
        self._confirmed.add(uid)

    def mark_delivered(self, uid: str, since: float) -> None:
        """Take note that a worker has had the attempt since then."""
        if uid in self._published:
            self._published[uid] = since

    def on_ready_count(self, ready: int, *, reporting: bool) -> None:
        """Take the broker's count of messages no worker has; call out what is overdue.

        Args:
            ready: the count.
            reporting: whether the broker takes what workers report.
        """
        if not reporting:
            self.restart_timeouts()
            return
        now = self._clock()
        delivered = len(self._published) - ready
        overdue = []
        for place, (uid, since) in enumerate(self._published.items()):
            if place >= delivered:
                self._published[uid] = None  # it may have come back
            elif since is None:
                if uid in self._confirmed:
                    self._published[uid] = now
            elif now - since > self._timeout_of(uid) + REPORT_GRACE_SECONDS:
                overdue.append((uid, since))
        for uid, since in overdue:
            self._on_unreported(uid, since)

    def restart_timeouts(self) -> None:
        """Give everybody the whole time again: nobody could report for a while."""
        self._published = dict.fromkeys(self._published)
