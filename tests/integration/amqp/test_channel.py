"""Consuming: acknowledgements, prefetch, and the ends a consumer and a channel can come to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.amqp.channel import Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.publisher import Publisher
from taskqueue.contract.work import deliveries_so_far
from tests.integration.amqp.messages import PATIENCE, Collector, fill

pytestmark = pytest.mark.broker

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
async def publisher(connection: Connection) -> Publisher:
    return await Publisher.open(connection)


@pytest.fixture
async def queue(channel: Channel) -> str:
    await channel.declare_queue("q", arguments=QUORUM)
    return "q"


async def ready(connection: Connection, queue: str) -> int:
    channel = await connection.channel()
    count = await channel.declare_queue(queue, passive=True)
    await channel.close()
    return count


async def count_after_return(connection: Connection, queue: str, count: int) -> list[Delivery]:
    """Consume what comes back to a queue, on a new channel."""
    collector = Collector()
    await collector.start(await connection.channel(), queue)
    return await collector.wait(count)


async def test_a_delivery_says_where_it_comes_from(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str
) -> None:
    await fill(publisher, queue, 1)
    collector = Collector()
    await collector.start(channel, queue)
    (delivery,) = await collector.wait(1)
    assert delivery.channel is channel
    assert (delivery.exchange, delivery.routing_key) == ("", queue)
    assert (delivery.body, delivery.redelivered) == (b"0", False)
    assert delivery.properties.message_id
    channel.ack(delivery.delivery_tag)
    await channel.close()
    assert await ready(connection, queue) == 0


async def test_multiple_acknowledges_all_up_to_a_tag(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str
) -> None:
    await fill(publisher, queue, 10)
    collector = Collector()
    await collector.start(channel, queue)
    deliveries = await collector.wait(10)
    channel.ack(deliveries[6].delivery_tag, multiple=True)
    await channel.close()
    back = await count_after_return(connection, queue, 3)
    assert [delivery.body for delivery in back] == [b"7", b"8", b"9"]


@pytest.mark.parametrize("how", ["nack", "reject"])
async def test_what_is_given_back_is_delivered_again_and_counted(
    channel: Channel, publisher: Publisher, queue: str, how: str
) -> None:
    await fill(publisher, queue, 1)
    collector = Collector()
    await collector.start(channel, queue)
    for returns in range(3):
        delivery = (await collector.wait(returns + 1))[returns]
        assert delivery.redelivered == (returns > 0)
        counted = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        assert counted == returns
        getattr(channel, how)(delivery.delivery_tag, requeue=True)


@pytest.mark.parametrize("how", ["nack", "reject"])
async def test_what_is_refused_without_requeue_is_gone(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str, how: str
) -> None:
    await fill(publisher, queue, 1)
    collector = Collector()
    await collector.start(channel, queue)
    (delivery,) = await collector.wait(1)
    getattr(channel, how)(delivery.delivery_tag, requeue=False)
    await channel.close()
    assert await ready(connection, queue) == 0


async def test_prefetch_limits_what_is_unacknowledged(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str
) -> None:
    await fill(publisher, queue, 10)
    await channel.set_prefetch(3)
    collector = Collector()
    await collector.start(channel, queue)
    deliveries = await collector.wait(3)
    assert await ready(connection, queue) == 7
    channel.ack(deliveries[2].delivery_tag, multiple=True)
    assert len(await collector.wait(6)) == 6
    assert await ready(connection, queue) == 4


async def test_deliveries_on_their_way_during_a_cancel_arrive(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str
) -> None:
    # Far more than one read of a socket takes: the cancel leaves in the middle of them.
    await fill(publisher, queue, 300, size=20_000)
    await channel.set_prefetch(200)
    seen: list[Delivery] = []
    flowing = asyncio.Event()

    def on_delivery(delivery: Delivery) -> None:
        # Not acknowledged yet: what that frees the broker sends, takes back and counts by itself.
        seen.append(delivery)
        flowing.set()

    tag = await channel.consume(queue, on_delivery, lambda reason: None)
    await asyncio.wait_for(flowing.wait(), PATIENCE)
    before = len(seen)
    await channel.cancel(tag)
    taken = len(seen)
    assert before < taken == 200, "nothing was on its way: the test says nothing"
    channel.ack(seen[-1].delivery_tag, multiple=True)
    await channel.close()
    rest = await count_after_return(connection, queue, 300 - taken)
    # Nothing was rejected on the way: a quorum queue would have counted it as a failed delivery.
    assert {delivery.redelivered for delivery in rest} == {False}
    assert len(seen) == taken


async def test_a_cancelled_consumer_can_be_started_again_with_another_prefetch(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str
) -> None:
    await channel.set_prefetch(1)
    collector = Collector()
    tag = await collector.start(channel, queue)
    await channel.cancel(tag)
    await channel.cancel(tag)
    await channel.cancel("never started")
    await channel.set_prefetch(4)
    assert await collector.start(channel, queue) != tag
    await fill(publisher, queue, 10)
    await collector.wait(4)
    assert await ready(connection, queue) == 6
    assert not collector.cancelled.done()


async def test_a_deleted_queue_cancels_its_consumer(
    connection: Connection, channel: Channel, queue: str
) -> None:
    collector = Collector()
    tag = await collector.start(channel, queue)
    await (await connection.channel()).delete_queue(queue)
    async with asyncio.timeout(PATIENCE):
        reason = await collector.cancelled
    assert "consumer of queue q" in reason
    await channel.cancel(tag)
    assert channel.is_open


async def test_a_missing_queue_is_refused(channel: Channel) -> None:
    with pytest.raises(ChannelRefused, match="404 NOT_FOUND - no queue 'missing'"):
        await Collector().start(channel, "missing")


async def test_nothing_is_raised_on_a_closed_channel(
    connection: Connection, channel: Channel, publisher: Publisher, queue: str
) -> None:
    await fill(publisher, queue, 2)
    collector = Collector()
    tag = await collector.start(channel, queue)
    first, second = await collector.wait(2)
    await channel.close()
    await channel.close()
    channel.ack(first.delivery_tag)
    channel.nack(first.delivery_tag, requeue=True)
    channel.reject(second.delivery_tag, requeue=False)
    channel.publish("", queue, b"", first.properties)
    await channel.cancel(tag)
    assert channel.closed.result() == (0, "the channel was closed by this process")
    assert not connection.closed.done()
    back = await count_after_return(connection, queue, 2)
    assert {delivery.redelivered for delivery in back} == {True}


async def test_a_stale_acknowledgement_costs_its_channel_only(
    connection: Connection, channel: Channel
) -> None:
    channel.ack(4711)
    await asyncio.wait({channel.closed}, timeout=PATIENCE)
    code, text = channel.closed.result()
    assert (code, "unknown delivery tag 4711" in text) == (406, True)
    assert not connection.closed.done()


async def test_an_exception_in_a_callback_is_reported_and_nothing_else_stops(
    channel: Channel, publisher: Publisher, queue: str
) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    collector = Collector()

    def on_delivery(delivery: Delivery) -> None:
        collector.on_delivery(delivery)
        raise RuntimeError("boom")

    await channel.consume(queue, on_delivery, collector.on_cancel)
    await fill(publisher, queue, 3)
    await collector.wait(3)
    loop.set_exception_handler(None)
    assert [str(context["exception"]) for context in reported] == ["boom"] * 3
    assert channel.is_open


async def test_cancelling_a_request_leaves_the_channel_usable(channel: Channel) -> None:
    request = asyncio.ensure_future(channel.declare_queue("first"))
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait({request})
    assert await channel.declare_queue("second") == 0
    assert await channel.declare_queue("first", passive=True) == 0


async def test_cancelled_openings_leave_no_channel_behind(connection: Connection) -> None:
    # RabbitMQ allows 2047 channels on a connection.
    for _ in range(21):
        openings = [asyncio.ensure_future(connection.channel()) for _ in range(100)]
        await asyncio.sleep(0)
        for opening in openings:
            opening.cancel()
        await asyncio.wait(openings)
        channel = await connection.channel()
        assert await channel.declare_queue("q") == 0
        await channel.close()
    assert not connection.closed.done()
