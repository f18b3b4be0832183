"""Publishes completion events on the events exchange, and keeps them until they are confirmed.

One publisher serves all queues; callers pass the channel publisher of a queue's broker. Contract:

* The event of an end that a worker reported is published at least once. Its outcome is
  unacknowledged until the event is confirmed, so it is not kept here when the broker's publisher
  is lost: the outcome is redelivered, and the event published again. It waits here only until its
  queue is opened, up to `OPEN_SECONDS`: a queue that never is (no TaskQueue, other arguments at
  the broker) must not fill the inbox with unacknowledged outcomes.
* The event of any other end (cancelled, deadline, …) exists nowhere else. It is kept while it
  cannot be published, up to `KEPT_LIMIT` events in all; above that, the oldest event of the queue
  with the most events is dropped and counted.
* The broker rejects an event when a bound queue is full and rejects publishes. No subscriber may
  hold up outcomes: the event is tried a few times, then dropped and counted, and treated as
  published. Subscribers with room have received it by then.
* An event without subscribers is confirmed like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.completion import CompletionEvent, task_completion
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.controller.metrics import COMPLETIONS_DROPPED, COMPLETIONS_PUBLISHED
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Task, TaskState

log = EventLog(__name__)

#: Events kept for a broker that is unavailable. They have no results: only workers report those.
KEPT_LIMIT = 10_000
#: How long the event of a reported end waits for its queue to be opened.
OPEN_SECONDS = 60.0
#: How often the broker may reject an event.
TRIES = 3
#: Pause before a rejected event is published again.
REFUSED_PAUSE_SECONDS = 1.0
#: Rejected events in a pause at once, well below the inbox's prefetch; more are dropped at once.
REFUSED_LIMIT = 500
#: Kept events published in one turn of the loop.
_BATCH = 128
#: Shortest time between two log lines about dropped events.
_LOG_SECONDS = 60.0

OnPublished = Callable[[], None]


@dataclass(slots=True, eq=False)
class _PendingCompletion:
    key: QueueKey
    message: OutgoingMessage
    reported: bool
    on_published: OnPublished | None
    tries: int = 0


class CompletionPublisher:
    """Publishes completion events, and calls back when one is confirmed or dropped.

    Args:
        kept_limit: of events that nobody else has, in all.
        on_dropped: called with the queue and the correlation id, such as the uid of a Task, of an
            event that is given up, before its own callback.
    """

    def __init__(
        self,
        *,
        kept_limit: int = KEPT_LIMIT,
        on_dropped: Callable[[QueueKey, str], None] = lambda key, correlation_id: None,
    ) -> None:
        self._kept_limit = kept_limit
        self._on_dropped = on_dropped
        #: Events that await `publish_kept`, by queue; the inbox's prefetch bounds the reported.
        self._reported: dict[QueueKey, deque[_PendingCompletion]] = {}
        self._others: dict[QueueKey, deque[_PendingCompletion]] = {}
        self._kept = 0
        self._refused = 0
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._next_log = 0.0

    def publish_task(
        self,
        task: Task,
        status: TaskState,
        *,
        reported: bool,
        publisher: Publisher | None,
        on_published: OnPublished | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish the event of a final status; arguments as of `publish_event`, and a record."""
        self.publish_event(
            task_completion(task, status, record),
            reported=reported,
            publisher=publisher,
            on_published=on_published,
        )

    def publish_event(
        self,
        event: CompletionEvent,
        *,
        reported: bool,
        publisher: Publisher | None,
        on_published: OnPublished | None = None,
    ) -> None:
        """Publish an event, now or at `publish_kept`.

        Args:
            event: to publish.
            reported: a worker's outcome is unacknowledged until ``on_published`` is called, and is
                redelivered if it never is.
            publisher: of the queue's broker; None while there is none.
            on_published: called once, later, when the event is confirmed or dropped. Never called
                if the publisher is lost before.
        """
        key = (event.namespace, event.queue)
        pending = _PendingCompletion(key, event.message(), reported, on_published)
        if publisher is None:
            self._keep(pending)
        else:
            self._publish(pending, publisher)

    @property
    def is_idle(self) -> bool:
        """Whether every event that nobody else has is with the broker."""
        return not (self._in_flight or self._kept or self._refused)

    def publish_kept(self, key: QueueKey, publisher: Publisher) -> None:
        """Publish the events kept for a queue whose broker is available (again)."""
        if publisher.closed.done():
            return
        for _ in range(_BATCH):
            pending = self._pop_kept(key)
            if pending is None:
                return
            self._publish(pending, publisher)
        asyncio.get_running_loop().call_soon(self.publish_kept, key, publisher)

    async def drain(self, seconds: float) -> None:
        """Wait until every event in flight is settled, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _publish(self, pending: _PendingCompletion, publisher: Publisher) -> None:
        message = pending.message
        try:
            publisher.publish(
                message.exchange,
                message.key,
                message.body,
                message.properties(),
                lambda verdict, text: self._on_settled(pending, publisher, verdict, text),
                mandatory=False,
            )
        except ValueError as error:
            self._give_up(pending, "unpublishable", str(error))
            return
        self._in_flight += 1
        self._idle.clear()

    def _on_settled(
        self, pending: _PendingCompletion, publisher: Publisher, verdict: Settled, text: str
    ) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()
        if verdict is Settled.CONFIRMED:
            COMPLETIONS_PUBLISHED.inc()
            _notify(pending)
        elif publisher.closed.done():
            self._on_publisher_lost(pending)
        else:
            self._refuse(pending, publisher, text)

    def _on_publisher_lost(self, pending: _PendingCompletion) -> None:
        if not pending.reported:
            self._keep(pending)

    def _refuse(self, pending: _PendingCompletion, publisher: Publisher, text: str) -> None:
        pending.tries += 1
        if pending.tries >= TRIES or self._refused >= REFUSED_LIMIT:
            self._give_up(pending, "refused", text)
            return
        self._refused += 1
        loop = asyncio.get_running_loop()
        loop.call_later(REFUSED_PAUSE_SECONDS, self._retry, pending, publisher)

    def _retry(self, pending: _PendingCompletion, publisher: Publisher) -> None:
        self._refused -= 1
        if publisher.closed.done():
            self._on_publisher_lost(pending)
        else:
            self._publish(pending, publisher)

    def _give_up(self, pending: _PendingCompletion, reason: str, error: str) -> None:
        self._drop(pending, reason, error)
        _notify(pending)

    def _keep(self, pending: _PendingCompletion) -> None:
        if pending.reported:
            self._reported.setdefault(pending.key, deque()).append(pending)
            asyncio.get_running_loop().call_later(OPEN_SECONDS, self._on_open_timeout, pending)
            return
        self._others.setdefault(pending.key, deque()).append(pending)
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

    def _on_open_timeout(self, pending: _PendingCompletion) -> None:
        kept = self._reported.get(pending.key)
        # All wait equally long: if this one still waits, it is the first.
        if kept and kept[0] is pending:
            kept.popleft()
            self._give_up(
                pending,
                "unopened",
                "the queue cannot be used at the broker: see the condition BrokerConnected of the "
                "TaskQueue, or create the TaskQueue",
            )

    def _pop_kept(self, key: QueueKey) -> _PendingCompletion | None:
        for by_queue in (self._reported, self._others):
            kept = by_queue.get(key)
            if kept:
                pending = kept.popleft()
                self._kept -= not pending.reported
                return pending
            by_queue.pop(key, None)
        return None

    def _drop(self, pending: _PendingCompletion, reason: str, error: str) -> None:
        COMPLETIONS_DROPPED.labels(reason).inc()
        self._on_dropped(pending.key, pending.message.correlation_id or "")
        now = asyncio.get_running_loop().time()
        if now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            log.warning(
                "completion.dropped",
                namespace=pending.key[0],
                queue=pending.key[1],
                uid=pending.message.correlation_id,
                reason=reason,
                error=error,
            )


def _notify(pending: _PendingCompletion) -> None:
    if pending.on_published is not None:
        pending.on_published()
