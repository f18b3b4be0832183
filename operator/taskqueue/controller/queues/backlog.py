"""The backlog of a queue, estimated from several sources that each know a part of it.

The sources, and how exact they are:

* The Tasks that wait in the operator, and those it has published: its own, exact.
* The messages ready at the broker, by a passive declare: exact, a second old. The excess over all
  own published Tasks is foreign messages, which others published.
* The messages that workers hold beyond the Tasks they name: foreign, up to a heartbeat old.
* The broker's statistics, if configured: ready and unacknowledged, own and foreign together, some
  seconds old.

The backlog is the own Tasks plus the largest certain number of foreign messages. Numbers of
different ages are never subtracted directly: an own Task that was published or ended in between
would appear as a foreign message. So the statistics are compared with the largest number of own
Tasks that were published at any time since the earliest moment they can describe.

Configured statistics that are missing for `STATISTICS_SECONDS` are an error: the estimate is then
a lower bound, by which a pool grows but does not shrink. A new connection within that time extends
it once, because zeros right after a connection do not count.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from taskqueue.model.queue_stats import QueueStats

#: The broker's statistics are at most this old when they are read: RabbitMQ updates those of a
#: quorum queue every 5 s, and its management plugin collects them every 5 s.
STATISTICS_AGE_SECONDS = 10.0
#: How long statistics count after they were read.
STATISTICS_SECONDS = 15.0
#: For this long after a connection, statistics of zero may mean that they are still empty.
EMPTY_STATISTICS_SECONDS = 10.0
#: How long numbers of published Tasks are kept.
_HISTORY_SECONDS = STATISTICS_AGE_SECONDS + STATISTICS_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogEstimate:
    """The backlog as known at one moment.

    Attributes:
        backlog: waiting in the operator, ready and unacknowledged; None: unknown.
        ready: at the broker, with no worker; None: unknown.
        running: at the broker, with a worker; None: unknown.
        error: why the backlog is unknown or only a lower bound; "": neither.
    """

    backlog: int | None
    ready: int | None
    running: int | None
    error: str = ""


class BacklogMeter:
    """Estimates the backlog of one queue from the sources that the module names.

    All times are seconds of one clock that never jumps.
    """

    def __init__(self) -> None:
        self._published = 0
        #: (end, number) of how many were published before, numbers strictly decreasing: one that a
        #: larger number follows can never be the maximum again.
        self._past_published: deque[tuple[float, int]] = deque()
        self._ready: int | None = None
        self._foreign_ready = 0
        #: Foreign messages that workers hold, at the last estimate and at the last count: what they
        #: received since the count may be part of it.
        self._workers = self._workers_at_count = 0
        self._connected_at = float("-inf")
        self._expected_since: float | None = None
        self._read_at: float | None = None
        self._foreign_unacknowledged = 0
        self._foreign_total = 0

    def observe_published(self, number: int, now: float) -> None:
        """Record how many own Tasks are published; call it at least for each maximum."""
        if number < self._published:
            while self._past_published and self._past_published[-1][1] <= self._published:
                self._past_published.pop()
            self._past_published.append((now, self._published))
        self._published = number
        while self._past_published and self._past_published[0][0] < now - _HISTORY_SECONDS:
            self._past_published.popleft()

    def set_ready(self, ready: int, *, published: int, now: float) -> None:
        """Record a count of ready messages.

        Args:
            ready: by a passive declare.
            published: the most own Tasks that were published while it was made.
            now: when it was made.
        """
        self.observe_published(published, now)
        self._ready = ready
        self._workers_at_count = self._workers
        self._foreign_ready = max(ready - published, 0)

    def clear_ready(self) -> None:
        """Discard the last count."""
        self._ready, self._foreign_ready = None, 0

    def on_connected(self, now: float) -> None:
        """Handle a new connection to the broker, whose workers may have lost theirs too.

        Unacknowledged messages may be ready again, and would be counted twice; the sum of both has
        not changed.
        """
        self._connected_at = now
        self._foreign_unacknowledged = 0

    def expect_statistics(self, since: float | None) -> None:
        """Expect statistics from ``since`` on; None: none are configured."""
        self._expected_since = since
        self._read_at = None
        self._foreign_unacknowledged = self._foreign_total = 0

    def set_statistics(self, stats: QueueStats, *, read_at: float) -> None:
        """Record the broker's statistics of the queue, read at ``read_at``."""
        if stats == QueueStats(0, 0) and read_at - self._connected_at < EMPTY_STATISTICS_SECONDS:
            return
        own = self._most_published(read_at - STATISTICS_AGE_SECONDS)
        self._read_at = read_at
        self._foreign_unacknowledged = max(stats.unacknowledged - own, 0)
        self._foreign_total = max(stats.ready + stats.unacknowledged - own, 0)

    def has_lost_statistics(self, now: float) -> bool:
        """Return whether expected statistics have been missing for too long."""
        if self._expected_since is None:
            return False
        last = self._expected_since if self._read_at is None else self._read_at
        # A new connection does not extend the time of statistics that were already missing.
        if last <= self._connected_at <= last + STATISTICS_SECONDS:
            last = self._connected_at
        return now - last > STATISTICS_SECONDS

    def update_estimate(
        self, *, waiting: int, published: int, workers_foreign: int, now: float, error: str
    ) -> BacklogEstimate:
        """Record the present numbers, and return the estimate.

        Args:
            waiting: own Tasks in the operator.
            published: own Tasks in the broker or with a worker.
            workers_foreign: messages other than Tasks that workers hold.
            now: the time.
            error: the text for missing statistics.
        """
        self.observe_published(published, now)
        missing = self.has_lost_statistics(now)
        unacknowledged = 0 if missing else self._foreign_unacknowledged
        total = 0 if missing else self._foreign_total
        self._workers = workers_foreign
        at_count = min(workers_foreign, self._workers_at_count)
        counted = self._foreign_ready + max(at_count, unacknowledged)
        foreign = max(counted, workers_foreign, total)
        ready = self._ready
        return BacklogEstimate(
            backlog=waiting + published + foreign,
            ready=ready,
            running=None if ready is None else max(published + foreign - ready, 0),
            error=error if missing else "",
        )

    def _most_published(self, since: float) -> int:
        """Return the largest number of own Tasks published at any moment from ``since`` on."""
        # Decreasing numbers with increasing ends: the first that ended later is the largest.
        for end, number in self._past_published:
            if end >= since:
                return max(number, self._published)
        return self._published
