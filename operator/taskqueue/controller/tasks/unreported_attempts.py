"""Finds the attempts that no worker will report any more.

The broker's queue hands out in order, so all but the last ``ready`` published are with a worker.
Messages of others make the count larger, and us more patient. While nobody could report, nobody is
late: then everybody gets the whole time again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.model.task import Policy

#: An attempt is given up when no outcome has come this long after its time-out: the worker reports
#: one by then, if there is a worker.
SILENCE_SECONDS = 10.0


class UnreportedAttempts:
    """See the module's contract.

    Args:
        published: the Tasks in the broker or with a worker, in the order of publishing.
        policy: what holds for a Task now.
        clock: wall time in seconds.
        on_silent: told of an attempt, and since when a worker has had it.
    """

    def __init__(
        self,
        published: Collection[TrackedTask],
        *,
        policy: Callable[[TrackedTask], Policy],
        clock: Callable[[], float],
        on_silent: Callable[[TrackedTask, float], None],
    ) -> None:
        self._published = published
        self._policy = policy
        self._clock = clock
        self._on_silent = on_silent

    def observed(self, ready: int, *, reporting: bool) -> None:
        """Take the broker's count of messages no worker has; tell of attempts that went silent.

        Args:
            ready: the count.
            reporting: whether the broker takes what workers report.
        """
        if not reporting:
            self.be_patient()
            return
        now = self._clock()
        delivered = len(self._published) - ready
        silent = []
        for place, entry in enumerate(self._published):
            if place >= delivered:
                entry.delivered_at = None  # it may have come back
                continue
            if entry.delivered_at is None:
                if entry.confirmed:
                    entry.delivered_at = now
                continue
            limit = self._policy(entry).attempt_timeout_seconds + SILENCE_SECONDS
            if now - entry.delivered_at > limit:
                silent.append((entry, entry.delivered_at))
        for entry, since in silent:
            self._on_silent(entry, since)

    def be_patient(self) -> None:
        """Give everybody the whole time again: nobody could report for a while."""
        for entry in self._published:
            entry.delivered_at = None
