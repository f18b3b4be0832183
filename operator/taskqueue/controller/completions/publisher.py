"""Tells everybody how Tasks ended: publishes events on the events exchange until confirmed.

One announcer serves all queues; the publisher of a queue's broker is handed in. Contract:

* An end that a worker reported is announced at least once. Its outcome is unacknowledged until the
  event is confirmed, so nothing is kept here beyond the publisher: when that is lost, the outcome
  comes again by itself, and with it the announcement. Only while its queue is not opened yet it
  waits, up to `OPEN_SECONDS`: a queue that never is (no TaskQueue, other arguments at the broker)
  must not fill the inbox with outcomes that nobody acknowledges.
* Any other end (cancelled, deadline, …) exists nowhere else. It is kept while it cannot be
  published, up to `KEPT_LIMIT` events in all; above it the oldest event of the queue with the most
  is dropped, and counted.
* The broker refuses an event when a queue that somebody bound is full and rejects publishes. No
  spectator may hold up outcomes: the event is tried a few times, then given up and counted, as if
  announced. Spectators with room have it by then.
* An event nobody listens to is confirmed like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.completion import CompletionEvent, task_event
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.controller.metrics import ANNOUNCED, ANNOUNCEMENTS_DROPPED
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Task, TaskState

log = EventLog(__name__)

#: Events kept for a broker that is away. They have no results: those come from workers.
KEPT_LIMIT = 10_000
#: How long a reported end waits for its queue to be opened.
OPEN_SECONDS = 60.0
#: How often the broker may refuse an event.
TRIES = 3
#: Pause before a refused event is published again.
REFUSED_PAUSE_SECONDS = 1.0
#: Refused events in a pause at once, well below the inbox's prefetch; more are given up at once.
REFUSED_LIMIT = 500
#: Kept events published in one turn of the loop.
_BATCH = 128
#: Shortest time between two log lines of the same trouble.
_LOG_SECONDS = 60.0

OnAnnounced = Callable[[], None]


@dataclass(slots=True, eq=False)
class _PendingCompletion:
    key: QueueKey
    message: OutgoingMessage
    reported: bool
    on_announced: OnAnnounced | None
    tries: int = 0


class CompletionPublisher:
    """See the module's contract."""

    def __init__(self, *, kept_limit: int = KEPT_LIMIT) -> None:
        self._kept_limit = kept_limit
        #: What awaits `opened`, by queue. Reported ones are bounded by the inbox's prefetch.
        self._reported: dict[QueueKey, deque[_PendingCompletion]] = {}
        self._others: dict[QueueKey, deque[_PendingCompletion]] = {}
        self._kept = 0
        self._refused = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._log_again = 0.0

    @property
    def kept(self) -> int:
        """Events of ends no worker reported that wait for their broker."""
        return self._kept

    def finished(
        self,
        task: Task,
        status: TaskState,
        *,
        reported: bool,
        publisher: Publisher | None,
        on_announced: OnAnnounced | None = None,
    ) -> None:
        """Announce a final status that is in the API server; arguments as of `announce`."""
        self.announce(
            task_event(task, status),
            reported=reported,
            publisher=publisher,
            on_announced=on_announced,
        )

    def announce(
        self,
        event: CompletionEvent,
        *,
        reported: bool,
        publisher: Publisher | None,
        on_announced: OnAnnounced | None = None,
    ) -> None:
        """Publish an event, now or once `opened`.

        Args:
            event: what to tell.
            reported: a worker's outcome is unacknowledged until ``on_announced`` is called, and
                comes again if it never is.
            publisher: of the queue's broker; None while there is none.
            on_announced: called later, once: the event is confirmed, or given up for good. Never
                called if the publisher is lost before.
        """
        key = (event.namespace, event.queue)
        one = _PendingCompletion(key, event.message(), reported, on_announced)
        if publisher is None:
            self._keep(one)
        else:
            self._publish(one, publisher)

    def opened(self, key: QueueKey, publisher: Publisher) -> None:
        """Publish what was kept for a queue: its broker is there (again)."""
        if publisher.closed.done():
            return
        for _ in range(_BATCH):
            one = self._take(key)
            if one is None:
                return
            self._publish(one, publisher)
        asyncio.get_running_loop().call_soon(self.opened, key, publisher)

    async def drain(self, seconds: float) -> None:
        """Wait until every event that is under way is settled, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _publish(self, one: _PendingCompletion, publisher: Publisher) -> None:
        message = one.message
        try:
            publisher.publish(
                message.exchange,
                message.key,
                message.body,
                message.properties(),
                lambda verdict, text: self._settled(one, publisher, verdict, text),
                mandatory=False,
            )
        except ValueError as problem:
            self._give_up(one, "unpublishable", str(problem))
            return
        self._under_way += 1
        self._idle.clear()

    def _settled(
        self, one: _PendingCompletion, publisher: Publisher, verdict: Settled, text: str
    ) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
        if verdict is Settled.CONFIRMED:
            ANNOUNCED.inc()
            _tell(one)
        elif publisher.closed.done():
            self._lost(one)
        else:
            self._refuse(one, publisher, text)

    def _lost(self, one: _PendingCompletion) -> None:
        if not one.reported:
            self._keep(one)

    def _refuse(self, one: _PendingCompletion, publisher: Publisher, text: str) -> None:
        one.tries += 1
        if one.tries >= TRIES or self._refused >= REFUSED_LIMIT:
            self._give_up(one, "refused", text)
            return
        self._refused += 1
        loop = asyncio.get_running_loop()
        loop.call_later(REFUSED_PAUSE_SECONDS, self._again, one, publisher)

    def _again(self, one: _PendingCompletion, publisher: Publisher) -> None:
        self._refused -= 1
        if publisher.closed.done():
            self._lost(one)
        else:
            self._publish(one, publisher)

    def _give_up(self, one: _PendingCompletion, why: str, problem: str) -> None:
        self._drop(one, why, problem)
        _tell(one)

    def _keep(self, one: _PendingCompletion) -> None:
        if one.reported:
            self._reported.setdefault(one.key, deque()).append(one)
            asyncio.get_running_loop().call_later(OPEN_SECONDS, self._expire, one)
            return
        self._others.setdefault(one.key, deque()).append(one)
        self._kept += 1
        if self._kept > self._kept_limit:
            longest = max(self._others.values(), key=len)
            self._kept -= 1
            self._drop(
                longest.popleft(),
                "overflow",
                f"more than {self._kept_limit} events wait for a broker: see the condition "
                "BrokerConnected of the TaskQueue",
            )

    def _expire(self, one: _PendingCompletion) -> None:
        line = self._reported.get(one.key)
        if line and line[0] is one:  # all wait equally long: whatever is left began with this one
            line.popleft()
            self._give_up(
                one,
                "unopened",
                "the queue cannot be used at the broker: see the condition BrokerConnected of the "
                "TaskQueue, or create the TaskQueue",
            )

    def _take(self, key: QueueKey) -> _PendingCompletion | None:
        for kept in (self._reported, self._others):
            line = kept.get(key)
            if line:
                one = line.popleft()
                self._kept -= not one.reported
                return one
            kept.pop(key, None)
        return None

    def _drop(self, one: _PendingCompletion, why: str, problem: str) -> None:
        ANNOUNCEMENTS_DROPPED.labels(why).inc()
        now = asyncio.get_running_loop().time()
        if now >= self._log_again:
            self._log_again = now + _LOG_SECONDS
            log.warning(
                "announcement.dropped",
                namespace=one.key[0],
                queue=one.key[1],
                uid=one.message.correlation_id,
                why=why,
                problem=problem,
            )


def _tell(one: _PendingCompletion) -> None:
    if one.on_announced is not None:
        one.on_announced()
