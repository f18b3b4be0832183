"""Keeps a worker's outcomes until the broker has confirmed each of them.

A message that is returned (no inbox yet) or whose fate is unknown (the connection was lost) is kept
and published again; the token in an outcome makes a duplicate harmless. The outbox outlives
publishers: after a reconnect a new one is attached. Its size is bounded by the deliveries that stay
unacknowledged meanwhile.

Only a worker that stops gives up what is returned for long: its TaskQueue and both queues are
deleted, and nobody will take it. The delivery stays unacknowledged, so nothing is lost if there is
a queue to go back to.

Once the operator reads batches, events leave as Nagle's algorithm sends: the first at once, and
what comes while something is unconfirmed together, when a confirm arrives, a batch is full, or
`HOLD_SECONDS` have passed. So nothing waits while the worker has little to report, and a broker
that is slow to confirm gets few messages. Only events that follow one another share a message:
their order does not change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from taskqueue.amqp.channel import CALLBACK
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.backoff import Backoff
from taskqueue.contract.batch import joined_bytes
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.outgoing import OutgoingMessage, batch_message
from taskqueue.limits import BATCH_BYTES, BATCH_EVENTS
from taskqueue.logs import EventLog

log = EventLog("taskqueue.worker")

#: How long an event waits for a confirm at most: one that does not come, such as of a dead letter
#: whose queue has no leader, holds up nothing else.
HOLD_SECONDS = 0.05

OnConfirmed = Callable[[], None]

#: How long a worker that stops publishes again what is returned (seconds): time for an operator to
#: declare a deleted inbox again.
RETURNED_SECONDS = 30.0

#: A message that is not confirmed, and what to call then.
Unconfirmed = tuple[OutgoingMessage, OnConfirmed]


class OutcomeOutbox:
    """Publishes messages until each is confirmed, through returns, losses and reconnects.

    Attributes:
        batches: whether the operator reads batches of events.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.batches = False
        self._loop = loop
        self._publisher: Publisher | None = None
        #: To be published again, or by the next publisher.
        self._waiting: list[Unconfirmed] = []
        #: To be published when a confirm arrives; empty while nothing is in flight.
        self._held: list[Unconfirmed] = []
        self._hold_timer: asyncio.TimerHandle | None = None
        #: Messages published and not settled.
        self._in_flight = 0
        self._outstanding = 0
        self._timer: asyncio.TimerHandle | None = None
        self._backoff = Backoff()
        self._failing = False
        #: Why the last message was returned, "" while messages are confirmed: logged once a reason.
        self._return_reason = ""
        self._drained: asyncio.Future[None] | None = None
        #: When what is returned is given up, on the loop's clock; None: never.
        self._give_up_at: float | None = None

    @property
    def outstanding(self) -> int:
        """Messages given to `publish` that the broker has not confirmed."""
        return self._outstanding

    def attach(self, publisher: Publisher) -> None:
        """Publish through this one from now on, first what is waiting."""
        self._publisher = publisher
        self._publish_waiting()

    def detach(self) -> None:
        """Drop the lost publisher, and keep everything until the next one."""
        self._publisher = None
        self._publish_held()

    def publish(self, message: OutgoingMessage, on_confirmed: OnConfirmed) -> None:
        """Publish until confirmed, as often as needed; then call ``on_confirmed``."""
        self._outstanding += 1
        unconfirmed = (message, on_confirmed)
        if self._held or (self.batches and self._in_flight):
            self._held.append(unconfirmed)
            if self._hold_timer is None:
                self._hold_timer = self._loop.call_later(HOLD_SECONDS, self._publish_held)
            if len(self._held) >= BATCH_EVENTS:
                self._publish_held()
        else:
            self._publish_all([unconfirmed])

    def publish_once(self, message: OutgoingMessage) -> None:
        """Publish without waiting for the confirm, if there is a publisher now."""
        if self._publisher is not None:
            self._publisher.publish(
                message.exchange, message.key, message.body, message.properties(), _ignore
            )

    def give_up_returned(self) -> None:
        """Publish what is returned for `RETURNED_SECONDS` more, then drop it: the worker stops."""
        self._give_up_at = self._loop.time() + RETURNED_SECONDS

    async def wait_until_drained(self) -> None:
        """Return when nothing is outstanding."""
        while self._outstanding:
            self._drained = self._loop.create_future()
            await self._drained

    def _publish_all(self, unconfirmed: list[Unconfirmed]) -> None:
        """Publish now, in this order; keep it for the next publisher if there is none."""
        publisher = self._publisher
        if publisher is None:
            self._waiting += unconfirmed
            return
        for group in _groups(unconfirmed) if self.batches else ([one] for one in unconfirmed):
            message = group[0][0]
            if len(group) > 1:
                message = batch_message(message.key, [each.body for each, _ in group])
            self._publish_by(publisher, message, group)

    def _publish_by(
        self, publisher: Publisher, message: OutgoingMessage, group: list[Unconfirmed]
    ) -> None:
        """Publish a message that is all of a group."""
        self._in_flight += 1
        try:
            publisher.publish(
                message.exchange,
                message.key,
                message.body,
                message.properties(),
                partial(self._on_settled, group),
            )
        except ValueError as error:  # what comes after it must be published all the same
            log.error("outcome.unpublishable", key=message.key, error=str(error))
            self._loop.call_soon(self._on_settled, group, Settled.UNKNOWN, str(error))

    def _on_settled(self, group: list[Unconfirmed], verdict: Settled, text: str) -> None:
        self._in_flight -= 1
        if verdict is Settled.CONFIRMED:
            for _, on_confirmed in group:
                self._on_confirmed(on_confirmed)
        elif self._is_given_up(verdict):
            message = group[0][0]
            log.warning("outcome.given_up", exchange=message.exchange, key=message.key)
            self._outstanding -= len(group)
            self._check_drained()
        else:
            self._schedule_retry(group, verdict, text)
        if verdict is Settled.CONFIRMED or not self._in_flight:
            self._publish_held()

    def _on_confirmed(self, on_confirmed: OnConfirmed) -> None:
        self._outstanding -= 1
        if self._failing:
            self._failing = False
            self._return_reason = ""
            self._backoff.reset()
        try:
            on_confirmed()
        except Exception as error:  # the others of a batch are confirmed, too
            self._loop.call_exception_handler(
                {
                    "message": "on_confirmed of an outcome failed",
                    "exception": error,
                    CALLBACK: True,
                }
            )
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._outstanding and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _is_given_up(self, verdict: Settled) -> bool:
        return (
            verdict is Settled.RETURNED
            and self._give_up_at is not None
            and self._loop.time() >= self._give_up_at
        )

    def _schedule_retry(self, group: list[Unconfirmed], verdict: Settled, text: str) -> None:
        self._waiting += group
        self._failing = True
        message = group[0][0]
        if verdict is Settled.RETURNED and self._return_reason != text:
            self._return_reason = text
            log.warning(
                "outcome.returned",
                exchange=message.exchange,
                key=message.key,
                reason=text,
                hint="start the operator, it binds its inbox for the TaskQueue; the outcome is "
                "kept until then",
            )
        if self._timer is None:
            self._timer = self._loop.call_later(self._backoff.next_delay(), self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._publish_all(waiting)

    def _publish_held(self) -> None:
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        held, self._held = self._held, []
        self._publish_all(held)


def _groups(unconfirmed: Iterable[Unconfirmed]) -> Iterator[list[Unconfirmed]]:
    """Divide messages into what one may hold: events of one routing key that follow one another."""
    group: list[Unconfirmed] = []
    group_bytes = 0
    for each in unconfirmed:
        message = each[0]
        size = group_bytes + len(message.body)
        if group and not (
            message.content_type == group[0][0].content_type == CONTENT_TYPE
            and message.key == group[0][0].key
            and len(group) < BATCH_EVENTS
            and joined_bytes(len(group) + 1, size) <= BATCH_BYTES
        ):
            yield group
            group, size = [], len(message.body)
        group.append(each)
        group_bytes = size
    if group:
        yield group


def _ignore(verdict: Settled, text: str) -> None:
    """Do nothing: no delivery depends on this message."""
