"""Publishes what a worker has to say until the broker has confirmed each of it.

A message that is returned (no inbox yet) or whose fate is unknown (the connection went) is kept
and published again; the token in an outcome makes a double harmless. The reporter outlives
publishers: after a reconnect a new one is attached. How much is kept is bounded by the deliveries
in hand, which stay unacknowledged for as long.
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


class OutcomeOutbox:
    """Messages in hand: published and not yet confirmed, or waiting to be published again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._publisher: Publisher | None = None
        self._waiting: list[tuple[OutgoingMessage, OnConfirmed]] = []
        self._outstanding = 0
        self._timer: asyncio.TimerHandle | None = None
        self._backoff = Backoff()
        self._failing = False
        #: Why the last message came back, "" while messages get through: logged once a reason.
        self._refusal = ""
        self._drained: asyncio.Future[None] | None = None

    @property
    def outstanding(self) -> int:
        """Messages the broker has not confirmed."""
        return self._outstanding

    def attach(self, publisher: Publisher) -> None:
        """Publish through this one from now on, what waits first."""
        self._publisher = publisher
        self._publish_waiting()

    def detach(self) -> None:
        """The publisher is gone: keep everything until the next one."""
        self._publisher = None

    def report(self, message: OutgoingMessage, on_confirmed: OnConfirmed) -> None:
        """Publish, again and again if need be, until confirmed; then call ``on_confirmed``."""
        self._outstanding += 1
        if self._publisher is None:
            self._waiting.append((message, on_confirmed))
        else:
            self._publish(self._publisher, message, on_confirmed)

    def mention(self, message: OutgoingMessage) -> None:
        """Publish once, if that is possible now; nobody waits for it."""
        if self._publisher is not None:
            self._publisher.publish(
                message.exchange, message.key, message.body, message.properties(), _ignore
            )

    async def drained(self) -> None:
        """Return when nothing is outstanding."""
        while self._outstanding:
            self._drained = self._loop.create_future()
            await self._drained

    def _publish(
        self, publisher: Publisher, message: OutgoingMessage, on_confirmed: OnConfirmed
    ) -> None:
        def settled(verdict: Settled, text: str) -> None:
            if verdict is Settled.CONFIRMED:
                self._confirmed(on_confirmed)
            else:
                self._keep(message, on_confirmed, verdict, text)

        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), settled
        )

    def _confirmed(self, on_confirmed: OnConfirmed) -> None:
        self._outstanding -= 1
        if self._failing:
            self._failing = False
            self._refusal = ""
            self._backoff.reset()
        on_confirmed()
        if not self._outstanding and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _keep(
        self, message: OutgoingMessage, on_confirmed: OnConfirmed, verdict: Settled, text: str
    ) -> None:
        self._waiting.append((message, on_confirmed))
        self._failing = True
        if verdict is Settled.RETURNED and self._refusal != text:
            self._refusal = text
            log.warning(
                "outcome.unroutable",
                exchange=message.exchange,
                key=message.key,
                reason=text,
                todo="start the operator, it declares the inbox; the outcome is kept until then",
            )
        if self._timer is None:
            self._timer = self._loop.call_later(self._backoff.next_delay(), self._again)

    def _again(self) -> None:
        self._timer = None
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        if self._publisher is None:
            return
        waiting, self._waiting = self._waiting, []
        for message, on_confirmed in waiting:
            self._publish(self._publisher, message, on_confirmed)


def _ignore(verdict: Settled, text: str) -> None:
    """Nobody waits for this message."""
