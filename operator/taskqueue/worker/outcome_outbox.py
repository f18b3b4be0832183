"""Keeps a worker's outcomes until the broker has confirmed each of them.

A message that is returned (no inbox yet) or whose fate is unknown (the connection was lost) is kept
and published again; the token in an outcome makes a duplicate harmless. The outbox outlives
publishers: after a reconnect a new one is attached. Its size is bounded by the deliveries that stay
unacknowledged meanwhile.

Only a worker that stops gives up what is returned for long: its TaskQueue and both queues are
deleted, and nobody will take it. The delivery stays unacknowledged, so nothing is lost if there is
a queue to go back to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.backoff import Backoff
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.logs import EventLog

log = EventLog("taskqueue.worker")

OnConfirmed = Callable[[], None]

#: How long a worker that stops publishes again what is returned (seconds): time for an operator to
#: declare a deleted inbox again.
RETURNED_SECONDS = 30.0


class OutcomeOutbox:
    """Publishes messages until each is confirmed, through returns, losses and reconnects."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._publisher: Publisher | None = None
        self._waiting: list[tuple[OutgoingMessage, OnConfirmed]] = []
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
        """Messages the broker has not confirmed."""
        return self._outstanding

    def attach(self, publisher: Publisher) -> None:
        """Publish through this one from now on, first what is waiting."""
        self._publisher = publisher
        self._publish_waiting()

    def detach(self) -> None:
        """Drop the lost publisher, and keep everything until the next one."""
        self._publisher = None

    def publish(self, message: OutgoingMessage, on_confirmed: OnConfirmed) -> None:
        """Publish until confirmed, as often as needed; then call ``on_confirmed``."""
        self._outstanding += 1
        if self._publisher is None:
            self._waiting.append((message, on_confirmed))
        else:
            self._publish_by(self._publisher, message, on_confirmed)

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

    def _publish_by(
        self, publisher: Publisher, message: OutgoingMessage, on_confirmed: OnConfirmed
    ) -> None:
        def on_settled(verdict: Settled, text: str) -> None:
            if verdict is Settled.CONFIRMED:
                self._on_confirmed(on_confirmed)
            elif self._is_given_up(verdict):
                log.warning("outcome.given_up", exchange=message.exchange, key=message.key)
                self._outstanding -= 1
                self._check_drained()
            else:
                self._schedule_retry(message, on_confirmed, verdict, text)

        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), on_settled
        )

    def _on_confirmed(self, on_confirmed: OnConfirmed) -> None:
        self._outstanding -= 1
        if self._failing:
            self._failing = False
            self._return_reason = ""
            self._backoff.reset()
        on_confirmed()
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

    def _schedule_retry(
        self, message: OutgoingMessage, on_confirmed: OnConfirmed, verdict: Settled, text: str
    ) -> None:
        self._waiting.append((message, on_confirmed))
        self._failing = True
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
        if self._publisher is None:
            return
        waiting, self._waiting = self._waiting, []
        for message, on_confirmed in waiting:
            self._publish_by(self._publisher, message, on_confirmed)


def _ignore(verdict: Settled, text: str) -> None:
    """Do nothing: no delivery depends on this message."""
