"""How much there is to do for a queue's workers, from several figures that are each half the truth.

What is known, and how well:

* The Tasks that wait in the operator, and those it has published: the operator's own, exact.
* The messages ready at the broker, by a passive declare: exact, a second old. It tells own Tasks
  from messages that others published (foreign ones) only where it is larger than all own together.
* What workers have in hand beyond the Tasks they name: foreign, up to a heartbeat old.
* The broker's statistics, if it has an endpoint for them: ready and unacknowledged, own and foreign
  together, some seconds old.

The backlog is the own Tasks plus the most that is certain about foreign messages. Figures of
different ages are never subtracted as they are: an own Task that has come or gone in between would
look like a foreign message. So the statistics are compared with the largest number of own Tasks
published since the moment they can be of at the earliest.

Statistics that are wanted and stay away for `STATISTICS_SECONDS` are a problem: what is left of
the number is a lower bound, to grow by and not to shrink by. A new connection that finds them in
time gives them this time once more, because zeros are not believed at first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from taskqueue.model.queue_stats import QueueStats

#: The broker's statistics tell what was at most so long before they were read: RabbitMQ renews
#: those of a quorum queue every 5 s, and its management gathers them every 5 s.
FIGURES_AGE_SECONDS = 10.0
#: Statistics that were read count for so long.
STATISTICS_SECONDS = 15.0
#: After a connection to the broker the statistics may be zero because they are still empty.
SETTLING_SECONDS = 10.0
#: How long it is remembered how many Tasks were published.
_HISTORY_SECONDS = FIGURES_AGE_SECONDS + STATISTICS_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogEstimate:
    """What there is to do, as known at one moment.

    Attributes:
        backlog: waiting in the operator, ready and unacknowledged; None: unknown.
        ready: at the broker, with no worker; None: unknown.
        running: at the broker, with a worker; None: unknown.
        problem: why the backlog is unknown or only a lower bound; "": it is as exact as can be.
    """

    backlog: int | None
    ready: int | None
    running: int | None
    problem: str = ""


class BacklogMeter:
    """Puts the figures of one queue together; see the module's contract.

    All times are seconds of one clock that never jumps.
    """

    def __init__(self) -> None:
        self._published = 0
        #: (end, number) of how many were published before, numbers strictly decreasing: one that
        #: was followed by a larger can never be the maximum again.
        self._before: deque[tuple[float, int]] = deque()
        self._ready: int | None = None
        self._foreign_ready = 0
        #: What workers had in hand when last told, and when it was last counted: what they have
        #: taken since then may be of what was counted.
        self._workers = self._workers_counted = 0
        self._connected_at = float("-inf")
        self._wanted_since: float | None = None
        self._read_at: float | None = None
        self._foreign_unacknowledged = 0
        self._foreign_total = 0

    def published(self, number: int, now: float) -> None:
        """Take note of how many own Tasks are published; to be told at least of each maximum."""
        if number < self._published:
            while self._before and self._before[-1][1] <= self._published:
                self._before.pop()
            self._before.append((now, self._published))
        self._published = number
        while self._before and self._before[0][0] < now - _HISTORY_SECONDS:
            self._before.popleft()

    def counted(self, ready: int, *, published: int, now: float) -> None:
        """Take a count of ready messages.

        Args:
            ready: by a passive declare.
            published: the most own Tasks that were published while it was made.
            now: when it was made.
        """
        self.published(published, now)
        self._ready = ready
        self._workers_counted = self._workers
        self._foreign_ready = max(ready - published, 0)

    def uncounted(self) -> None:
        """Forget the last count."""
        self._ready, self._foreign_ready = None, 0

    def connected(self, now: float) -> None:
        """Take note of a new connection to the broker, whose workers were perhaps cut off too.

        What was unacknowledged may be ready again, and would be counted twice; the sum of both
        stays what it was.
        """
        self._connected_at = now
        self._foreign_unacknowledged = 0

    def want_statistics(self, since: float | None) -> None:
        """Expect statistics from ``since`` on; None: there are none, and it is no problem."""
        self._wanted_since = since
        self._read_at = None
        self._foreign_unacknowledged = self._foreign_total = 0

    def told(self, figures: QueueStats, *, read_at: float) -> None:
        """Take what the broker's statistics said of the queue at ``read_at``."""
        if figures == QueueStats(0, 0) and read_at - self._connected_at < SETTLING_SECONDS:
            return
        own = self._most_published(read_at - FIGURES_AGE_SECONDS)
        self._read_at = read_at
        self._foreign_unacknowledged = max(figures.unacknowledged - own, 0)
        self._foreign_total = max(figures.ready + figures.unacknowledged - own, 0)

    def statistics_missing(self, now: float) -> bool:
        """Tell whether statistics are wanted and have stayed away for too long."""
        if self._wanted_since is None:
            return False
        last = self._wanted_since if self._read_at is None else self._read_at
        # Statistics that were missing before are no better known for a new connection.
        if last <= self._connected_at <= last + STATISTICS_SECONDS:
            last = self._connected_at
        return now - last > STATISTICS_SECONDS

    def read(
        self, *, waiting: int, published: int, workers_foreign: int, now: float, problem: str
    ) -> BacklogEstimate:
        """Put together what is known.

        Args:
            waiting: own Tasks in the operator.
            published: own Tasks in the broker or with a worker.
            workers_foreign: messages that workers have in hand and that are no Tasks.
            now: the time.
            problem: what to say if statistics are missing.
        """
        self.published(published, now)
        missing = self.statistics_missing(now)
        unacknowledged = 0 if missing else self._foreign_unacknowledged
        total = 0 if missing else self._foreign_total
        self._workers = workers_foreign
        since_before = min(workers_foreign, self._workers_counted)
        counted = self._foreign_ready + max(since_before, unacknowledged)
        foreign = max(counted, workers_foreign, total)
        ready = self._ready
        return BacklogEstimate(
            backlog=waiting + published + foreign,
            ready=ready,
            running=None if ready is None else max(published + foreign - ready, 0),
            problem=problem if missing else "",
        )

    def _most_published(self, since: float) -> int:
        """Return the largest number of own Tasks published at any moment from ``since`` on."""
        # Decreasing numbers with increasing ends: the first that ended later is the largest.
        for end, number in self._before:
            if end >= since:
                return max(number, self._published)
        return self._published
