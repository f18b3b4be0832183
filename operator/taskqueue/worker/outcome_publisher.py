"""The connection for outcomes, opened again after every loss for as long as the worker lives.

It is separate from the consumer's: under a memory alarm the broker stops reading connections that
publish, and acknowledgements must still get through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.logs import EventLog
from taskqueue.worker.outcome_outbox import OutcomeOutbox

log = EventLog("taskqueue.worker")


class OutcomePublisher:
    """Gives the outbox a publisher, and another one after every loss.

    Attributes:
        connection: the open one, or None; heartbeats are published on it too.
    """

    def __init__(
        self,
        parameters: BrokerParameters,
        *,
        name: str,
        outbox: OutcomeOutbox,
        on_ready: Callable[[], None],
    ) -> None:
        self._parameters = parameters
        self._on_ready = on_ready
        self._name = name
        self._outbox = outbox
        self.connection: Connection | None = None

    async def run(self) -> None:
        """Stay connected until cancelled; then close the connection.

        Raises:
            BrokerConfigurationError: a certificate or key cannot be read.
        """
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        logged_reason = ""
        while True:
            try:
                reason = await self._publish_on_connection(backoff.succeeded)
            except BrokerUnavailable as error:
                reason = str(error)
            if backoff.has_held():
                logged_reason = ""
            if reason != logged_reason:
                logged_reason = reason
                log.warning("publisher.lost", reason=reason, outstanding=self._outbox.outstanding)
            await asyncio.sleep(backoff.next_delay())

    async def _publish_on_connection(self, on_up: Callable[[], None]) -> str:
        """Connect, attach a publisher to the outbox, and return why it ended."""
        connection: Connection | None = None
        try:
            connection = await connect(self._parameters, name=self._name)
            publisher = await Publisher.open(connection)
            self._outbox.attach(publisher)
            self.connection = connection
            on_up()
            self._on_ready()
            log.debug("publisher.connected")
            await asyncio.wait({publisher.closed})
            return publisher.closed.result()
        finally:
            self._outbox.detach()
            self.connection = None
            if connection is not None:
                await connection.close()
