"""A producer's connection to RabbitMQ: made when it is needed, and again after every loss."""

from __future__ import annotations

import asyncio

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.logs import EventLog

log = EventLog("taskqueue.client")


class ReconnectingPublisher:
    """One publisher for all senders of a producer.

    Args:
        parameters: of the broker.
        name: shown by the broker in its list of connections.
    """

    def __init__(self, parameters: BrokerParameters, *, name: str) -> None:
        self._parameters = parameters
        self._name = name
        self._connection: Connection | None = None
        self._publisher: Publisher | None = None
        self._opening = asyncio.Lock()
        self._backoff = Backoff(held_seconds=HELD_SECONDS)
        self._problem = ""

    @property
    def trouble(self) -> str:
        """Why nothing is confirmed, as far as it is known here; empty: nothing is known."""
        if self._connection is not None and self._connection.blocked is not None:
            return f"the broker reads nothing, it has an alarm ({self._connection.blocked})"
        return self._problem

    async def publisher(self) -> Publisher:
        """Return an open publisher, however long it takes.

        Raises:
            BrokerConfigurationError: a certificate or key cannot be read.
        """
        async with self._opening:
            while self._publisher is None or self._publisher.closed.done():
                if self._publisher is not None:
                    self._problem = self._publisher.closed.result()
                    await self._lost()
                await self.close()  # one that was being opened when its sender gave up
                try:
                    self._connection = await connect(self._parameters, name=self._name)
                    self._publisher = await Publisher.open(self._connection)
                except (BrokerUnavailable, ChannelRefused) as problem:
                    if self._problem != str(problem):
                        self._problem = str(problem)
                        log.warning("producer.unconnected", problem=self._problem)
                    await asyncio.sleep(self._backoff.next_delay())
                else:
                    self._backoff.succeeded()
                    self._problem = ""
            return self._publisher

    async def close(self) -> None:
        """Close the connection; what is not confirmed by then is unknown."""
        connection, self._connection, self._publisher = self._connection, None, None
        if connection is not None:
            await connection.close()

    async def _lost(self) -> None:
        log.warning("producer.lost", problem=self._problem)
        await self.close()
        if self._backoff.has_held():
            self._backoff.reset()
        else:
            await asyncio.sleep(self._backoff.next_delay())
