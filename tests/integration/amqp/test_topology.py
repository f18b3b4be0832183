"""What the operator declares: complete, repeatable, and never on top of something else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.names import (
    CONTROL_ARGUMENTS,
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    DIRECT_EXCHANGE,
    EVENTS_EXCHANGE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    dead_queue,
    work_queue,
    work_queue_arguments,
)
from taskqueue.contract.topology import (
    TopologyConflict,
    declare_operator_topology,
    declare_task_queue,
    find_direct_exchange,
    ready_messages,
)
from taskqueue.contract.work import claimed_attempt, published_to
from tests.integration.amqp.endpoint import VirtualHost
from tests.integration.amqp.messages import Collector, fill, properties

pytestmark = pytest.mark.broker

WORK = work_queue("shop", "images")
DEAD = dead_queue("shop", "images")
KEY = "shop.images"


async def count(connection: Connection, queue: str) -> int | None:
    channel = await connection.channel()
    found = await ready_messages(channel, queue)
    await channel.close()
    return found


async def test_declaring_again_changes_nothing(connection: Connection) -> None:
    for created in (True, False, False):
        await declare_operator_topology(connection)
        assert await declare_task_queue(connection, "shop", "images") is created
    assert not connection.closed.done()


@pytest.mark.parametrize(
    ("exchange", "key", "queues"),
    [
        (WORK_EXCHANGE, KEY, [WORK]),
        (DIRECT_EXCHANGE, KEY, [WORK]),
        (DEAD_EXCHANGE, KEY, [DEAD, INBOX_QUEUE]),
        (OUTCOMES_EXCHANGE, f"{KEY}.task.succeeded", [INBOX_QUEUE]),
    ],
)
async def test_each_key_reaches_its_queues(
    connection: Connection, exchange: str, key: str, queues: list[str]
) -> None:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "images")
    publisher = await Publisher.open(connection)
    told = await publisher.publish_and_wait(exchange, key, b"", properties())
    assert told == (Settled.CONFIRMED, "")
    for queue in (WORK, DEAD, INBOX_QUEUE):
        assert await count(connection, queue) == (1 if queue in queues else 0)


@pytest.mark.parametrize("exchange", [WORK_EXCHANGE, DIRECT_EXCHANGE])
async def test_another_queue_of_the_namespace_is_not_reached(
    connection: Connection, exchange: str
) -> None:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "images")
    publisher = await Publisher.open(connection)
    verdict, _ = await publisher.publish_and_wait(exchange, "shop.mail", b"", properties())
    assert verdict is Settled.RETURNED


async def test_a_message_names_the_exchange_it_was_published_to_at_each_delivery(
    connection: Connection, channel: Channel
) -> None:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "images")
    publisher = await Publisher.open(connection)
    for exchange in (WORK_EXCHANGE, DIRECT_EXCHANGE):
        told = await publisher.publish_and_wait(exchange, KEY, b"", properties())
        assert told == (Settled.CONFIRMED, "")
    collector = Collector()
    await collector.start(channel, WORK)
    for _ in range(2):
        deliveries = list(await collector.wait(2))
        assert {one.exchange for one in deliveries} == {WORK_EXCHANGE, DIRECT_EXCHANGE}
        collector.deliveries.clear()
        for delivery in deliveries:
            channel.reject(delivery.delivery_tag, requeue=True)


async def test_the_brokers_record_of_a_death_replaces_what_the_publisher_wrote_there(
    connection: Connection, channel: Channel
) -> None:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "images")
    forged = BasicProperties(
        message_id="m",
        correlation_id="u",
        headers={
            "tq-token": "k.1",
            "tq-attempt": 1,
            "tq-epoch": 0,
            "tq-exchange": WORK_EXCHANGE,
            "x-death": [{"exchange": WORK_EXCHANGE, "queue": WORK, "reason": "rejected"}],
        },
    )
    publisher = await Publisher.open(connection)
    told = await publisher.publish_and_wait(DIRECT_EXCHANGE, KEY, b"", forged)
    assert told == (Settled.CONFIRMED, "")
    worker, reader = Collector(), Collector()
    await worker.start(channel, WORK)
    (delivery,) = await worker.wait(1)
    channel.reject(delivery.delivery_tag, requeue=False)
    await reader.start(channel, DEAD)
    (letter,) = await reader.wait(1)
    assert published_to(letter.properties.headers or {}) == DIRECT_EXCHANGE
    assert claimed_attempt(letter.properties) is None


async def test_producers_find_the_exchange_of_an_older_operator(
    connection: Connection, channel: Channel
) -> None:
    assert await find_direct_exchange(connection) == WORK_EXCHANGE
    await channel.declare_exchange(WORK_EXCHANGE)
    assert await find_direct_exchange(connection) == WORK_EXCHANGE
    await declare_operator_topology(connection)
    assert await find_direct_exchange(connection) == DIRECT_EXCHANGE


async def test_a_deleted_work_queue_is_declared_again_and_its_dead_stay(
    connection: Connection, channel: Channel
) -> None:
    await declare_operator_topology(connection)
    await declare_task_queue(connection, "shop", "images")
    await fill(await Publisher.open(connection), DEAD, 3)
    await channel.delete_queue(WORK)
    assert await count(connection, WORK) is None
    assert await declare_task_queue(connection, "shop", "images") is True
    assert await count(connection, WORK) == 0
    assert await count(connection, DEAD) == 3


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (WORK, {"x-queue-type": "classic"}),
        (WORK, {**work_queue_arguments("shop", "images"), "x-delivery-limit": 3}),
        (WORK, {**work_queue_arguments("shop", "images"), "x-overflow": "drop-head"}),
        (DEAD, {"x-queue-type": "quorum", "x-max-length": 5}),
    ],
    ids=["classic", "delivery limit", "overflow", "length of the dead queue"],
)
async def test_a_queue_with_other_arguments_is_named_and_left_alone(
    connection: Connection, channel: Channel, queue: str, arguments: dict[str, Any]
) -> None:
    await declare_operator_topology(connection)
    await channel.declare_queue(queue, arguments=arguments)
    with pytest.raises(TopologyConflict, match=f"queue {queue} exists with other") as conflict:
        await declare_task_queue(connection, "shop", "images")
    assert conflict.value.name == queue
    assert "inequivalent arg" in str(conflict.value)
    # As it was: declaring it with its own arguments still succeeds.
    assert await channel.declare_queue(queue, arguments=arguments) == 0
    if queue == DEAD:
        assert await count(connection, WORK) is None, "work without a route for its dead letters"


@pytest.mark.parametrize(
    "exchange", [WORK_EXCHANGE, DIRECT_EXCHANGE, DEAD_EXCHANGE, OUTCOMES_EXCHANGE, EVENTS_EXCHANGE]
)
async def test_an_exchange_of_another_kind_is_named(
    connection: Connection, channel: Channel, exchange: str
) -> None:
    await channel.declare_exchange(exchange, kind="direct")
    with pytest.raises(TopologyConflict, match=f"exchange {exchange} exists") as conflict:
        await declare_operator_topology(connection)
    assert conflict.value.name == exchange


async def test_an_inbox_with_other_arguments_is_named(
    connection: Connection, channel: Channel
) -> None:
    await channel.declare_queue(INBOX_QUEUE, arguments={"x-queue-type": "quorum"})
    with pytest.raises(TopologyConflict, match=INBOX_QUEUE):
        await declare_operator_topology(connection)


async def test_a_control_stream_with_other_arguments_is_named(
    connection: Connection, channel: Channel
) -> None:
    await channel.declare_queue(CONTROL_STREAM, arguments={**CONTROL_ARGUMENTS, "x-max-age": "2D"})
    with pytest.raises(TopologyConflict, match=CONTROL_STREAM):
        await declare_operator_topology(connection)


async def test_an_event_nobody_reads_is_confirmed_when_it_need_not_arrive(
    connection: Connection,
) -> None:
    await declare_operator_topology(connection)
    publisher = await Publisher.open(connection)
    told: asyncio.Queue[tuple[Settled, str]] = asyncio.Queue()
    for mandatory in (False, True):
        publisher.publish(
            EVENTS_EXCHANGE,
            f"{KEY}.task.succeeded",
            b"{}",
            properties(),
            lambda verdict, text: told.put_nowait((verdict, text)),
            mandatory=mandatory,
        )
    assert (await told.get())[0] is Settled.CONFIRMED
    assert (await told.get())[0] is Settled.RETURNED


async def test_a_user_who_may_not_declare_is_refused(rabbitmq_vhost: VirtualHost) -> None:
    management, user = rabbitmq_vhost.management, rabbitmq_vhost.name
    management.request("PUT", "users", user, body={"password": "pw", "tags": ""})
    management.permit(rabbitmq_vhost.name, user, configure="^$", write=".*", read=".*")
    try:
        parameters = replace(rabbitmq_vhost.parameters, username=user, password="pw")
        connection = await connect(parameters, name="test")
        with pytest.raises(ChannelRefused, match=f"configure access to exchange '{WORK_EXCHANGE}'"):
            await declare_operator_topology(connection)
        with pytest.raises(ChannelRefused, match=f"configure access to queue '{DEAD}'") as refused:
            await declare_task_queue(connection, "shop", "images")
        assert refused.value.code == 403
        await connection.close()
    finally:
        management.request("DELETE", "users", user)


async def test_ready_messages_counts_exactly(connection: Connection, channel: Channel) -> None:
    await channel.declare_queue("q", arguments={"x-queue-type": "quorum"})
    assert await ready_messages(channel, "q") == 0
    await fill(await Publisher.open(connection), "q", 7)
    assert await ready_messages(channel, "q") == 7
    assert await ready_messages(channel, "missing") is None
    assert channel.closed.result()[0] == 404
