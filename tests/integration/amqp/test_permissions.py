"""The broker users of a worker and of a producer: what they need, and nothing else.

The patterns are those of docs/reference/message-contract.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters, ManagementEndpoint
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.client import AsyncProducer
from taskqueue.contract.command import WorkerCommand, command_message, decode
from taskqueue.contract.names import (
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    DIRECT_EXCHANGE,
    EVENTS_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    work_queue,
)
from taskqueue.contract.topology import declare_operator_topology, declare_task_queue
from taskqueue.contract.worker_users import permissions, topic_permissions
from taskqueue.direct.broker_users import BrokerUsers
from taskqueue.direct.management_http import ManagementClient
from taskqueue.model.command import CommandKind
from tests.integration.amqp.endpoint import Rabbitmq, VirtualHost
from tests.integration.amqp.messages import Collector, fill, properties

pytestmark = pytest.mark.broker

OWNER = {"namespace": "shop", "queue": "images"}
WORK = work_queue("shop", "images")
OUTCOME_KEY = "shop.images.task.succeeded"


@pytest.fixture
async def users(
    rabbitmq_vhost: VirtualHost, broker_endpoint: Rabbitmq
) -> AsyncIterator[BrokerUsers]:
    """Makes users, as the operator does where credentials are managed."""
    client = ManagementClient(
        ManagementEndpoint(
            url=f"http://{broker_endpoint.host}:{broker_endpoint.management_port}",
            username=broker_endpoint.username,
            password=broker_endpoint.password,
            broker=rabbitmq_vhost.parameters,
        )
    )
    yield BrokerUsers(client)
    await client.close()


@pytest.fixture
async def worker(
    rabbitmq_vhost: VirtualHost, users: BrokerUsers
) -> AsyncIterator[BrokerParameters]:
    user = f"worker-{rabbitmq_vhost.name}"
    await users.put(user, "pw", **OWNER)
    yield replace(rabbitmq_vhost.parameters, username=user, password="pw")
    await users.delete([user])


@pytest.fixture
def producer(rabbitmq_vhost: VirtualHost) -> Iterator[BrokerParameters]:
    management, vhost = rabbitmq_vhost.management, rabbitmq_vhost.name
    user = f"producer-{vhost}"
    management.request("PUT", "users", user, body={"password": "pw", "tags": ""})
    management.permit(vhost, user, configure="^$", write=r"^taskqueue\.direct$", read="^$")
    body = {"exchange": DIRECT_EXCHANGE, "write": r"^shop\.images$", "read": "^$"}
    management.request("PUT", "topic-permissions", vhost, user, body=body)
    yield replace(rabbitmq_vhost.parameters, username=user, password="pw")
    management.request("DELETE", "users", user)


@pytest.fixture
async def declared(connection: Connection) -> None:
    await declare_operator_topology(connection)
    for queue in ("images", "mail"):
        await declare_task_queue(connection, "shop", queue)


@pytest.mark.usefixtures("declared")
async def test_a_worker_can_do_its_work(connection: Connection, worker: BrokerParameters) -> None:
    await fill(await Publisher.open(connection), WORK, 2)
    own = await connect(worker, name="worker")
    channel = await own.channel()
    assert await channel.declare_queue(WORK, passive=True) == 2
    collector = Collector()
    await collector.start(channel, WORK)
    done, given_up = await collector.wait(2)
    publisher = await Publisher.open(own)
    for exchange, key in ((OUTCOMES_EXCHANGE, OUTCOME_KEY), (DEAD_EXCHANGE, "shop.images")):
        told = await publisher.publish_and_wait(exchange, key, b"{}", properties())
        assert told == (Settled.CONFIRMED, "")
    channel.ack(done.delivery_tag)
    channel.reject(given_up.delivery_tag, requeue=False)
    await own.close()


@pytest.mark.usefixtures("declared")
async def test_a_worker_reads_orders(connection: Connection, worker: BrokerParameters) -> None:
    order = WorkerCommand(CommandKind.CANCEL, token="k.1", uid="u")
    message = command_message(order)
    publisher = await Publisher.open(connection)
    told = await publisher.publish_and_wait(
        message.exchange, message.key, message.body, message.properties()
    )
    assert told == (Settled.CONFIRMED, "")
    own = await connect(worker, name="worker")
    channel = await own.channel()
    await channel.declare_queue(CONTROL_STREAM, passive=True)
    await channel.set_prefetch(100)
    collector = Collector()
    await channel.consume(
        CONTROL_STREAM,
        collector.on_delivery,
        collector.on_cancel,
        arguments={"x-stream-offset": "first"},
    )
    (delivery,) = await collector.wait(1)
    assert decode(delivery.body) == order
    channel.ack(delivery.delivery_tag)
    await own.close()


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        (OUTCOMES_EXCHANGE, "shop.mail.task.succeeded"),
        (HEARTBEATS_EXCHANGE, "shop.mail.worker.heartbeat"),
        (DEAD_EXCHANGE, "shop.mail"),
        (WORK_EXCHANGE, "shop.images"),
        (DIRECT_EXCHANGE, "shop.images"),
        ("", WORK),
        ("", CONTROL_STREAM),
        (EVENTS_EXCHANGE, OUTCOME_KEY),
    ],
    ids=[
        "another queue's outcome",
        "another queue's heartbeat",
        "another queue's dead letter",
        "work",
        "a direct message",
        "any queue by name",
        "an order",
        "what the operator tells",
    ],
)
async def test_a_worker_publishes_nothing_else(
    worker: BrokerParameters, exchange: str, key: str
) -> None:
    await expect_refused(worker, exchange, key)


@pytest.mark.usefixtures("declared")
async def test_a_worker_neither_declares_nor_reads_other_queues(worker: BrokerParameters) -> None:
    own = await connect(worker, name="worker")
    with pytest.raises(ChannelRefused, match="403 ACCESS_REFUSED"):
        await Collector().start(await own.channel(), work_queue("shop", "mail"))
    with pytest.raises(ChannelRefused, match="403 ACCESS_REFUSED"):
        await (await own.channel()).declare_queue("taskqueue.shop.mine")
    await own.close()


@pytest.mark.usefixtures("declared")
async def test_what_else_a_worker_may_is_taken_away(
    rabbitmq_vhost: VirtualHost, users: BrokerUsers, worker: BrokerParameters
) -> None:
    management, vhost, name = rabbitmq_vhost.management, rabbitmq_vhost.name, worker.username
    management.permit(vhost, name, configure=".*", write=".*", read=".*")
    management.permit("/", name, configure=".*", write=".*", read=".*")
    body = {"exchange": WORK_EXCHANGE, "write": ".*", "read": ".*"}
    for virtual_host in (vhost, "/"):
        management.request("PUT", "topic-permissions", virtual_host, name, body=body)
    await users.put(name, "pw", **OWNER)
    held = management.request("GET", "users", name, "permissions")
    assert held == [{"user": name, "vhost": vhost, **permissions(**OWNER)}]
    topics = management.request("GET", "users", name, "topic-permissions")
    assert {(each["vhost"], each["exchange"]): each["write"] for each in topics} == {
        (vhost, exchange): write for exchange, write in topic_permissions(**OWNER).items()
    }


@pytest.mark.usefixtures("declared")
async def test_a_rotation_closes_no_connection_and_a_deletion_does(
    users: BrokerUsers, worker: BrokerParameters
) -> None:
    own = await connect(worker, name="worker")
    publisher = await Publisher.open(own)
    await users.put(worker.username, "other", **OWNER)
    await (await connect(replace(worker, password="other"), name="worker")).close()
    await users.revoke_password(worker.username)
    for password in ("pw", "other"):
        with pytest.raises(BrokerUnavailable, match="refused the login"):
            await connect(replace(worker, password=password), name="worker")
    told = await publisher.publish_and_wait(OUTCOMES_EXCHANGE, OUTCOME_KEY, b"{}", properties())
    assert told == (Settled.CONFIRMED, "")
    assert await users.exists(worker.username)
    await users.delete([worker.username])
    await asyncio.wait({own.closed}, timeout=20)
    assert own.closed.done()
    assert not await users.exists(worker.username)


async def test_users_are_found_by_their_prefix(
    rabbitmq_vhost: VirtualHost, users: BrokerUsers, worker: BrokerParameters
) -> None:
    assert await users.list_names(f"worker-{rabbitmq_vhost.name}") == [worker.username]
    assert await users.list_names("nobody-") == []


@pytest.mark.usefixtures("declared")
async def test_a_producer_sends_direct_messages(
    connection: Connection, producer: BrokerParameters
) -> None:
    async with AsyncProducer(
        {
            "host": producer.host,
            "port": str(producer.port),
            "username": producer.username,
            "password": producer.password,
            "vhost": producer.virtual_host,
        }
    ) as client:
        await client.send("shop", "images", {"width": 64})
    collector = Collector()
    channel = await connection.channel()
    await collector.start(channel, WORK)
    (delivery,) = await collector.wait(1)
    assert (delivery.exchange, delivery.routing_key) == (DIRECT_EXCHANGE, "shop.images")


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        (DIRECT_EXCHANGE, "shop.mail"),
        (WORK_EXCHANGE, "shop.images"),
        (OUTCOMES_EXCHANGE, OUTCOME_KEY),
        ("", WORK),
    ],
    ids=["to another queue", "as the operator", "an outcome", "to any queue by name"],
)
async def test_a_producer_publishes_nothing_else(
    producer: BrokerParameters, exchange: str, key: str
) -> None:
    await expect_refused(producer, exchange, key)


async def expect_refused(user: BrokerParameters, exchange: str, key: str) -> None:
    own = await connect(user, name="refused")
    publisher = await Publisher.open(own)
    verdict, text = await publisher.publish_and_wait(exchange, key, b"{}", properties())
    assert verdict is Settled.UNKNOWN
    assert text.startswith("403 ACCESS_REFUSED")
    await asyncio.wait({publisher.closed}, timeout=20)
    await own.close()
