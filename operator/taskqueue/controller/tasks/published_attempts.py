"""The attempts of one queue that are in the broker or with a worker.

How many there may be, how many there were at most, and which of them no worker will report any
more. The broker's queue hands out in order, so all but the last ``ready`` published are with a
worker. Messages of others make the count larger, and us more patient. While nobody could report,
nobody is late: then everybody gets the whole time again.

All times are of one monotonic clock: a step of the wall clock makes no attempt late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator

from taskqueue.limits import REPORT_GRACE_SECONDS

#: How long a Task that has ended may still be among the broker's messages: its worker acknowledges
#: at about the time the operator handles the outcome, and the statistics are sampled.
LATE_SECONDS = 1.0

#: The smallest window: enough to keep any pool busy for a round trip.
MIN_WINDOW = 64

#: The period over which the finish rate is counted.
_RATE_WINDOW_SECONDS = 5


def window_size(*, max_published: int, slots: int, finished_in_5_seconds: int) -> int:
    """Return how many unfinished Tasks of a queue may be in RabbitMQ at once.

    Enough to keep the workers busy, few enough that priority, pausing and cancelling act on
    nearly everything that waits, and that a crash of the operator can repeat little.
    """
    return min(max_published, max(MIN_WINDOW, 2 * slots, finished_in_5_seconds))


class FinishRate:
    """Counts the Tasks finished in the last five seconds, by whole seconds."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, now: float) -> None:
        """Count a Task that finished now."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))

    def recent(self, now: float) -> int:
        """Return the count of the last five seconds."""
        while self._seconds and self._seconds[0][0] < now - _RATE_WINDOW_SECONDS:
            self._seconds.popleft()
        return sum(count for _, count in self._seconds)


class PublishedAttempts:
    """Keeps the published attempts in the order of publishing, and watches that each is reported.

    Args:
        timeout_of: the attempt timeout of a Task now, in seconds.
        clock: monotonic time in seconds.
        on_unreported: called with a uid, and for how many seconds a worker has had its attempt.
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
        #: Of those that run without a message: the worker by uid, and the uids by worker.
        self._worker_of: dict[str, str] = {}
        self._awaited: dict[str, set[str]] = {}
        self._peak = PublishedPeak()

    def __len__(self) -> int:
        return len(self._published)

    def __iter__(self) -> Iterator[str]:
        """Yield the uids in the order of publishing."""
        return iter(self._published)

    def add(self, uid: str) -> None:
        """Watch an attempt that is being published."""
        self._published[uid] = None
        self._confirmed.discard(uid)
        self._peak.add(self._clock())

    def discard(self, uid: str) -> bool:
        """Stop watching an attempt; return whether it was published."""
        if uid not in self._published:
            return False
        del self._published[uid]
        self._confirmed.discard(uid)
        worker = self._worker_of.pop(uid, None)
        if worker is not None:
            self._awaited[worker].discard(uid)
            if not self._awaited[worker]:
                del self._awaited[worker]
        self._peak.remove(self._clock())
        return True

    def pop_most(self) -> int:
        """Return the most messages there were at the broker since this was last called."""
        return self._peak.pop(self._clock())

    def mark_confirmed(self, uid: str) -> None:
        """Take note that the broker has the attempt's message."""
        self._confirmed.add(uid)

    def mark_delivered(self, uid: str, seconds: float) -> None:
        """Take note that a worker has had the attempt for these seconds."""
        if uid in self._published:
            self._published[uid] = self._clock() - seconds

    def await_worker(self, uid: str, worker: str) -> None:
        """Take note that this worker runs an attempt whose message was given back."""
        if uid in self._published and uid not in self._worker_of:
            self._worker_of[uid] = worker
            self._awaited.setdefault(worker, set()).add(uid)

    def missed_by(self, worker: str, uids: Collection[str]) -> list[str]:
        """Return which of these this worker does not run any more, which runs ``uids``."""
        return [uid for uid in self._awaited.get(worker, ()) if uid not in uids]

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
                overdue.append((uid, now - since))
        for uid, seconds in overdue:
            self._on_unreported(uid, seconds)

    def restart_timeouts(self) -> None:
        """Give everybody the whole time again: nobody could report for a while."""
        self._published = dict.fromkeys(self._published)


class PublishedPeak:
    """Tracks the most messages of own Tasks that can have been at the broker at once.

    A Task counts for `LATE_SECONDS` after it stops being published.
    """

    def __init__(self) -> None:
        self._published = 0
        self._removed: deque[float] = deque()
        self._most = 0

    def add(self, now: float) -> None:
        """Count a Task that is published now."""
        self._published += 1
        self._most = max(self._most, self._present(now))

    def remove(self, now: float) -> None:
        """Count a Task that is no longer published."""
        self._published -= 1
        self._removed.append(now)

    def pop(self, now: float) -> int:
        """Return the peak since the last call, and start over from the present count."""
        present = self._present(now)
        most, self._most = max(self._most, present), present
        return most

    def _present(self, now: float) -> int:
        while self._removed and self._removed[0] < now - LATE_SECONDS:
            self._removed.popleft()
        return self._published + len(self._removed)
