"""A producer's connection to RabbitMQ, opened on first use and again after every loss."""

from __future__ import annotations

import asyncio

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.contract.names import DIRECT_EXCHANGE
from taskqueue.contract.topology import find_direct_exchange
from taskqueue.logs import EventLog

log = EventLog("taskqueue.client")


class ReconnectingPublisher:
    """Opens and reopens the publisher that all calls of a producer share.

    Args:
        parameters: of the broker.
        name: of the connection, as the broker lists it.
    """

    def __init__(self, parameters: BrokerParameters, *, name: str) -> None:
        self._parameters = parameters
        self._name = name
        self._connection: Connection | None = None
        self._publisher: Publisher | None = None
        self._opening = asyncio.Lock()
        self._backoff = Backoff(held_seconds=HELD_SECONDS)
        self._error = ""
        #: Where direct messages go, at the broker of the open publisher.
        self.exchange = DIRECT_EXCHANGE

    @property
    def last_error(self) -> str:
        """Why nothing is confirmed; "" when it is unknown."""
        if self._connection is not None and self._connection.blocked is not None:
            return f"the broker blocks publishers because of an alarm ({self._connection.blocked})"
        return self._error

    async def publisher(self) -> Publisher:
        """Return an open publisher; retry without limit until there is one.

        Raises:
            BrokerConfigurationError: a certificate or key cannot be read.
        """
        async with self._opening:
            while self._publisher is None or self._publisher.closed.done():
                if self._publisher is not None:
                    self._error = self._publisher.closed.result()
                    await self._on_connection_lost()
                await self.close()  # one that was being opened when its caller timed out
                try:
                    self._connection = await connect(self._parameters, name=self._name)
                    self.exchange = await find_direct_exchange(self._connection)
                    self._publisher = await Publisher.open(self._connection)
                except (BrokerUnavailable, ChannelRefused) as error:
                    if self._error != str(error):
                        self._error = str(error)
                        log.warning("producer.connect_failed", error=self._error)
                    await asyncio.sleep(self._backoff.next_delay())
                else:
                    self._backoff.succeeded()
                    self._error = ""
            return self._publisher

    async def close(self) -> None:
        """Close the connection; unconfirmed messages may be in the queue or not."""
        connection, self._connection, self._publisher = self._connection, None, None
        if connection is not None:
            await connection.close()

    async def _on_connection_lost(self) -> None:
        log.warning("producer.disconnected", error=self._error)
        await self.close()
        if self._backoff.has_held():
            self._backoff.reset()
        else:
            await asyncio.sleep(self._backoff.next_delay())
