"""What a real RabbitMQ passes on of messages nobody should send: each arrives, once, whole.

It refuses some by closing the connection that published them. Whatever it accepts must come out of
the consumer's connection, which never closes, with its body as it was.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection, connect
from tests.faults.raw_messages import publish_raw_properties
from tests.fuzz import field_tables as tables
from tests.fuzz.cases import FEW, MANY, fewer
from tests.fuzz.wire_broker import FRAME_MAX
from tests.integration.amqp.conftest import broker_endpoint, rabbitmq_vhost
from tests.integration.amqp.endpoint import VirtualHost

__all__ = ["broker_endpoint", "rabbitmq_vhost"]

pytestmark = pytest.mark.broker

PATIENCE = 60
_EXCHANGE, _QUEUE = "anything", "q"
_PROPERTIES = (tables.GOOD_PROPERTIES | tables.BAD_PROPERTIES).map(
    lambda properties: properties[: FRAME_MAX - 20]
)
_KEYS = st.just(b"shop.q") | st.binary(max_size=255)


class Consumer:
    """Reads the queue on a connection that outlives all cases."""

    def __init__(self, vhost: VirtualHost) -> None:
        self._parameters = vhost.parameters
        self._runner = asyncio.Runner()
        self._numbers = itertools.count()
        self._given: list[Delivery] = []
        self._connection = self._runner.run(self._open())

    async def _open(self) -> Connection:
        connection = await connect(self._parameters, name="fuzz: consume")
        channel = await connection.channel()
        await channel.declare_exchange(_EXCHANGE)
        await channel.declare_queue(_QUEUE, arguments={"x-queue-type": "quorum"})
        await channel.bind_queue(_QUEUE, _EXCHANGE, "#")
        self._arrived = asyncio.Event()
        await channel.consume(_QUEUE, self._on_delivery, lambda reason: None)
        return connection

    def _on_delivery(self, delivery: Delivery) -> None:
        self._given.append(delivery)
        delivery.channel.ack(delivery.delivery_tag)
        self._arrived.set()

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()

    def check(self, key: bytes, properties: bytes) -> None:
        """Publish a message and then a good one, and see what comes."""
        self._runner.run(self._check(key, properties))

    async def _check(self, key: bytes, properties: bytes) -> None:
        self._given.clear()
        odd, good = (f"{next(self._numbers)}".encode() + b"\x00\xff" for _ in range(2))
        wanted = [odd] if await self._publish(key, properties, odd) else []
        assert await self._publish(b"good", b"\x00\x00", good)
        async with asyncio.timeout(PATIENCE):
            while good not in [each.body for each in self._given]:
                self._arrived.clear()
                await self._arrived.wait()
        assert [each.body for each in self._given] == [*wanted, good]
        assert self._given[-1].problem == ""
        assert not self._connection.closed.done()

    async def _publish(self, key: bytes, properties: bytes, body: bytes) -> bool:
        """Return whether the broker took it."""
        connection = await connect(self._parameters, name="fuzz: publish")
        try:
            channel = await connection.channel()
            publish_raw_properties(channel, _EXCHANGE, key, properties, body)
            await channel.declare_queue(_QUEUE, passive=True)
        except (BrokerUnavailable, ChannelRefused):
            return False
        finally:
            await connection.close()
        return True


@pytest.fixture
def consumer(rabbitmq_vhost: VirtualHost) -> Iterator[Consumer]:
    made = Consumer(rabbitmq_vhost)
    yield made
    made.close()


def _every_message_arrives(consumer: Consumer, cases: settings) -> None:
    @cases
    @given(key=_KEYS, properties=_PROPERTIES)
    def run(key: bytes, properties: bytes) -> None:
        consumer.check(key, properties)

    run()


def test_whatever_a_broker_passes_on_arrives(consumer: Consumer) -> None:
    _every_message_arrives(consumer, fewer(FEW, 10))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_whatever_a_broker_passes_on_of_many_new_messages_arrives(consumer: Consumer) -> None:
    _every_message_arrives(consumer, fewer(MANY, 10))
