"""The connection for outcomes, opened again after every loss for as long as the worker lives.

It is separate from the consumer's: under a memory alarm the broker stops reading connections that
publish, and acknowledgements must still get through.

The broker closes the channel over an exchange that does not exist, or that this user may not
publish to. Then only the channel is opened again, with growing pauses: heartbeats go on, on the
same connection. Nothing is published before the exchanges exist, because a publish to one that does
not would take with it what the broker has not confirmed yet. Only the operator declares them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerConfigurationError
from taskqueue.amqp.publisher import Publisher
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.contract.names import DEAD_EXCHANGE, OUTCOMES_EXCHANGE
from taskqueue.logs import EventLog
from taskqueue.worker.broker_source import BrokerSource
from taskqueue.worker.outcome_outbox import OutcomeOutbox

log = EventLog("taskqueue.worker")

#: What a worker publishes to until it is confirmed.
_EXCHANGES = (OUTCOMES_EXCHANGE, DEAD_EXCHANGE)


class OutcomePublisher:
    """Gives the outbox a publisher, and another one after every loss.

    Args:
        broker: where it is, read for each connection.
        name: the connection's, for people who list connections.
        outbox: has what is to be published.
        on_ready: called whenever it can be published.

    Attributes:
        connection: the open one, or None; heartbeats are published on it too.
    """

    def __init__(
        self,
        broker: BrokerSource,
        *,
        name: str,
        outbox: OutcomeOutbox,
        on_ready: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._on_ready = on_ready
        self._name = name
        self._outbox = outbox
        self.connection: Connection | None = None
        #: Why nothing could be published when that was last logged.
        self._logged_reason = ""

    async def run(self) -> None:
        """Stay connected until cancelled; then close the connection.

        Raises:
            BrokerConfigurationError: the broker's settings cannot be used, and cannot change.
        """
        backoff = _new_backoff()
        while True:
            connection: Connection | None = None
            try:
                connection = await connect(self._broker.read(), name=self._name)
                self.connection = connection
                backoff.succeeded()
                await self._publish_on(connection)
            except BrokerUnavailable as error:
                self._log_once(str(error), backoff)
            except BrokerConfigurationError as error:
                self._log_once(self._broker.explain_or_raise(error), backoff)
            finally:
                self.connection = None
                if connection is not None:
                    await connection.close()
            await asyncio.sleep(backoff.next_delay())

    async def _publish_on(self, connection: Connection) -> None:
        """Publish on one channel after another.

        Raises:
            BrokerUnavailable: the connection is closed.
        """
        backoff = _new_backoff()
        while True:
            try:
                reason = await self._publish(connection, backoff.succeeded)
            except ChannelRefused as refusal:
                reason = str(refusal)
            if connection.closed.done():
                raise BrokerUnavailable(connection.closed.result())
            self._log_once(reason, backoff)
            await asyncio.wait({connection.closed}, timeout=backoff.next_delay())

    async def _publish(self, connection: Connection, on_up: Callable[[], None]) -> str:
        """Attach a publisher to the outbox once it can publish, and return why it ended."""
        channel = await connection.channel()
        try:
            for exchange in _EXCHANGES:
                await channel.declare_exchange(exchange, passive=True)
        finally:
            await channel.close()
        publisher = await Publisher.open(connection)
        try:
            self._outbox.attach(publisher)
            on_up()
            self._on_ready()
            log.debug("publisher.connected")
            await asyncio.wait({publisher.closed})
            return publisher.closed.result()
        finally:
            self._outbox.detach()

    def _log_once(self, reason: str, backoff: Backoff) -> None:
        """Log why nothing can be published, once for each reason in a row."""
        if backoff.has_held():
            self._logged_reason = ""
        if reason != self._logged_reason:
            self._logged_reason = reason
            log.warning(
                "publisher.lost",
                reason=reason,
                outstanding=self._outbox.outstanding,
                hint="outcomes are kept and published again; an exchange that is missing has to be "
                "declared by the operator",
            )


def _new_backoff() -> Backoff:
    return Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
