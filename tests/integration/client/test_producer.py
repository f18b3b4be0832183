"""Direct messages against a real broker: where they are when `send` has returned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.client import AsyncProducer, NotConfirmed, Producer, Refused, Unroutable
from taskqueue.contract.names import work_queue
from taskqueue.contract.topology import declare_operator_topology, declare_task_queue
from taskqueue.contract.work import DirectMessage, parse_work
from tests.faults.relay import relay_to
from tests.integration.amqp.endpoint import VirtualHost

pytestmark = pytest.mark.broker

PATIENCE = 60.0


def secret(parameters: BrokerParameters) -> dict[str, str]:
    """Return the parameters as a connection Secret has them."""
    return {
        "host": parameters.host,
        "port": str(parameters.port),
        "username": parameters.username,
        "password": parameters.password,
        "vhost": parameters.virtual_host,
    }


@pytest.fixture
async def queue(connection: Connection) -> str:
    """A queue as the operator declares it."""
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "mails")
    return work_queue("shop", "mails")


@pytest.fixture
async def producer(parameters: BrokerParameters) -> AsyncIterator[AsyncProducer]:
    async with AsyncProducer(secret(parameters)) as producer:
        yield producer


async def ready(connection: Connection, queue: str) -> int:
    channel = await connection.channel()
    count = await channel.declare_queue(queue, passive=True)
    await channel.close()
    return count


async def consume(connection: Connection, queue: str, count: int) -> list[Delivery]:
    """Consume ``count`` messages of the queue."""
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    channel = await connection.channel()

    def on_delivery(delivery: Delivery) -> None:
        channel.ack(delivery.delivery_tag)  # a quorum queue hands out 2,000 at most without
        arrived.put_nowait(delivery)

    await channel.consume(queue, on_delivery, lambda reason: None)
    async with asyncio.timeout(PATIENCE):
        return [await arrived.get() for _ in range(count)]


async def test_producer_sends_a_message_that_a_worker_can_parse(
    connection: Connection, producer: AsyncProducer, queue: str
) -> None:
    await producer.send("shop", "mails", {"to": "a"}, handler="mail", correlation_id="c")
    await producer.send("shop", "mails")
    assert await ready(connection, queue) == 2
    one, other = await consume(connection, queue, 2)
    assert parse_work(one.properties, one.body, exchange=one.exchange) == DirectMessage(
        handler="mail", correlation_id="c", payload={"to": "a"}
    )
    assert parse_work(other.properties, other.body, exchange=other.exchange) == DirectMessage(
        handler=None, correlation_id=None, payload={}
    )


async def test_producer_raises_until_the_queue_is_declared(
    connection: Connection, producer: AsyncProducer
) -> None:
    with pytest.raises(Unroutable, match=r"has no exchange taskqueue\.direct"):
        await producer.send("shop", "mails")
    await declare_operator_topology(connection)
    with pytest.raises(Unroutable, match="no TaskQueue shop/mails has declared its queue"):
        await producer.send("shop", "mails")
    await declare_task_queue(connection, "shop", "mails")
    await producer.send("shop", "mails")
    assert await ready(connection, work_queue("shop", "mails")) == 1


async def test_producer_delivers_thousands_once_each(
    connection: Connection, producer: AsyncProducer, queue: str
) -> None:
    assert await producer.send_many("shop", "mails", ({"n": n} for n in range(5000))) == 5000
    assert await ready(connection, queue) == 5000


async def test_producer_loses_no_message_when_the_connection_breaks(
    connection: Connection, parameters: BrokerParameters, queue: str
) -> None:
    async with (
        relay_to(parameters) as (relay, reached),
        AsyncProducer(secret(reached)) as producer,
    ):
        await producer.send("shop", "mails", {"n": -1})

        def payloads() -> Iterator[dict[str, int]]:
            for number in range(2000):
                if number == 1000:  # some are confirmed, some on their way
                    relay.cut()
                yield {"n": number}

        assert await producer.send_many("shop", "mails", payloads()) == 2000
        await producer.send("shop", "mails", {"n": 2000})
    arrived = await consume(connection, queue, await ready(connection, queue))
    numbers = {orjson.loads(one.body)["n"] for one in arrived}
    assert numbers == set(range(-1, 2001))


async def test_producer_raises_without_write_permission(
    rabbitmq_vhost: VirtualHost, producer: AsyncProducer, queue: str
) -> None:
    user = rabbitmq_vhost.parameters.username
    rabbitmq_vhost.management.permit(
        rabbitmq_vhost.name, user, configure=".*", write="^$", read=".*"
    )
    with pytest.raises(Refused, match=r"403 ACCESS_REFUSED.*write permission") as found:
        await producer.send("shop", "mails")
    assert found.value.status == 403


async def test_producer_names_a_full_queue(
    rabbitmq_vhost: VirtualHost, parameters: BrokerParameters, queue: str
) -> None:
    rabbitmq_vhost.management.request(
        "PUT",
        "policies",
        rabbitmq_vhost.name,
        "small",
        body={"pattern": "^taskqueue\\.", "definition": {"max-length": 1}, "apply-to": "queues"},
    )
    async with AsyncProducer(secret(parameters), patience_seconds=3) as producer:

        async def send_on() -> None:
            while True:  # the limit holds soon, not at once
                await producer.send("shop", "mails")

        with pytest.raises(NotConfirmed, match="queue is full or failing"):
            await send_on()


async def test_producer_names_an_unreachable_broker() -> None:
    async with AsyncProducer("amqp://u:secret@127.0.0.1:1/", patience_seconds=1) as producer:
        with pytest.raises(NotConfirmed, match=r"127\.0\.0\.1:1/.*nothing listens there") as found:
            await producer.send("shop", "mails")
    assert "secret" not in str(found.value)


async def test_producer_without_an_event_loop(
    connection: Connection, parameters: BrokerParameters, queue: str
) -> None:
    def program() -> int:
        with Producer(secret(parameters)) as producer:
            producer.send("shop", "mails", {"n": -1})
            return producer.send_many("shop", "mails", ({"n": n} for n in range(4500)))

    assert await asyncio.to_thread(program) == 4500
    assert await ready(connection, queue) == 4501
