"""What the broker or a worker gives up on reaches the dead queue and the operator's inbox."""

from __future__ import annotations

import pytest

from taskqueue.amqp.channel import Channel
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.names import (
    INBOX_QUEUE,
    WORK_EXCHANGE,
    dead_queue,
    work_queue,
    work_queue_arguments,
)
from taskqueue.contract.topology import declare_operator_topology, declare_task_queue
from taskqueue.contract.work import WorkMessage, deliveries_so_far
from tests.integration.amqp.messages import Collector, properties

pytestmark = pytest.mark.broker

WORK = work_queue("shop", "images")
DEAD = dead_queue("shop", "images")
KEY = "shop.images"
LIMIT = work_queue_arguments("shop", "images")["x-delivery-limit"]

MESSAGE = WorkMessage(
    namespace="shop",
    queue="images",
    task="resize-1",
    uid="0b1c",
    handler="resize",
    attempt=1,
    max_attempts=3,
    epoch=0,
    token="k1.abc",
    max_deliveries=3,
    timeout_seconds=60,
    body=b'{"size": 128}',
)


@pytest.fixture
async def publisher(connection: Connection) -> Publisher:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "images")
    publisher = await Publisher.open(connection)
    told = await publisher.publish_and_wait(WORK_EXCHANGE, KEY, MESSAGE.body, MESSAGE.properties())
    assert told == (Settled.CONFIRMED, "")
    return publisher


async def assert_dead_lettered(connection: Connection, reason: str) -> None:
    for queue in (DEAD, INBOX_QUEUE):
        collector = Collector()
        await collector.start(await connection.channel(), queue)
        (letter,) = await collector.wait(1)
        assert letter.body == MESSAGE.body
        assert (letter.exchange, letter.routing_key) == ("taskqueue.dead", KEY)
        assert letter.properties.correlation_id == MESSAGE.uid
        headers = letter.properties.headers
        assert headers["tq-token"] == MESSAGE.token
        assert headers["x-first-death-reason"] == reason
        assert headers["x-first-death-queue"] == WORK


async def test_a_rejected_message(
    connection: Connection, channel: Channel, publisher: Publisher
) -> None:
    worker = Collector()
    await worker.start(channel, WORK)
    (delivery,) = await worker.wait(1)
    channel.reject(delivery.delivery_tag, requeue=False)
    await assert_dead_lettered(connection, "rejected")


async def test_a_message_returned_too_often(
    connection: Connection, channel: Channel, publisher: Publisher
) -> None:
    worker = Collector()
    await worker.start(channel, WORK)
    for returns in range(LIMIT + 1):
        delivery = (await worker.wait(returns + 1))[returns]
        counted = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        assert counted == returns
        channel.reject(delivery.delivery_tag, requeue=True)
    await assert_dead_lettered(connection, "delivery_limit")
    assert len(worker.deliveries) == LIMIT + 1


async def test_a_dead_letter_published_under_another_key_has_a_route(
    connection: Connection, channel: Channel, publisher: Publisher
) -> None:
    """Straight into the queue, as a person does by the management page."""
    worker = Collector()
    await worker.start(channel, WORK)
    (first,) = await worker.wait(1)
    channel.ack(first.delivery_tag)
    told = await publisher.publish_and_wait("", WORK, b"by hand", properties())
    assert told == (Settled.CONFIRMED, "")
    second = (await worker.wait(2))[1]
    channel.reject(second.delivery_tag, requeue=False)
    dead = Collector()
    await dead.start(await connection.channel(), DEAD)
    (letter,) = await dead.wait(1)
    assert (letter.body, letter.routing_key) == (b"by hand", KEY)


async def test_a_dead_queue_has_no_delivery_limit(
    connection: Connection, channel: Channel, publisher: Publisher
) -> None:
    worker = Collector()
    await worker.start(channel, WORK)
    (delivery,) = await worker.wait(1)
    channel.reject(delivery.delivery_tag, requeue=False)
    reader = Collector()
    dead_channel = await connection.channel()
    await reader.start(dead_channel, DEAD)
    for returns in range(LIMIT + 5):
        letter = (await reader.wait(returns + 1))[returns]
        dead_channel.reject(letter.delivery_tag, requeue=True)
    assert (await reader.wait(LIMIT + 6))[-1].body == MESSAGE.body
