"""Finds the attempts that no worker will report any more.

The broker's queue delivers in order, so all but the last ``ready`` published are with a worker.
Messages of other publishers raise that count, which only delays the finding. While workers cannot
report, no attempt is late: afterwards each gets its whole time again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.limits import REPORT_GRACE_SECONDS
from taskqueue.model.task import Policy


class UnreportedAttempts:
    """Watches the published attempts of a queue for those that outlive their timeout.

    Args:
        published: the Tasks in the broker or with a worker, in the order of publishing.
        policy: a Task's present policy.
        clock: wall time in seconds.
        on_unreported: called with a Task, and the time since when a worker has had its attempt.
    """

    def __init__(
        self,
        published: Collection[TrackedTask],
        *,
        policy: Callable[[TrackedTask], Policy],
        clock: Callable[[], float],
        on_unreported: Callable[[TrackedTask, float], None],
    ) -> None:
        self._published = published
        self._policy = policy
        self._clock = clock
        self._on_unreported = on_unreported

    def on_ready_count(self, ready: int, *, reporting: bool) -> None:
        """Find unreported attempts, given the broker's count of messages no worker has.

        Args:
            ready: the count.
            reporting: whether the broker accepts what workers report.
        """
        if not reporting:
            self.restart_timeouts()
            return
        now = self._clock()
        delivered = len(self._published) - ready
        unreported = []
        for place, entry in enumerate(self._published):
            if place >= delivered:
                entry.delivered_at = None  # it may have come back
                continue
            if entry.delivered_at is None:
                if entry.confirmed:
                    entry.delivered_at = now
                continue
            limit = self._policy(entry).attempt_timeout_seconds + REPORT_GRACE_SECONDS
            if now - entry.delivered_at > limit:
                unreported.append((entry, entry.delivered_at))
        for entry, since in unreported:
            self._on_unreported(entry, since)

    def restart_timeouts(self) -> None:
        """Give every attempt its whole time again: workers could not report for a while."""
        for entry in self._published:
            entry.delivered_at = None
