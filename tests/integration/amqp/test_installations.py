"""Two operators in one virtual host: each gets what is about its TaskQueues, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    HEARTBEATS_QUEUE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
    dead_queue,
    heartbeats_queue,
    inbox_queue,
    routing_key,
    work_queue,
)
from taskqueue.contract.topology import (
    declare_operator_topology,
    declare_task_queue,
    delete_task_queue,
    ready_messages,
    unbind_all_keys,
)
from taskqueue.controller.queues.broker_link import BrokerLink, InboxMarkers, LinkUp
from taskqueue.model.queue import QueueKey
from tests.integration.amqp.endpoint import VirtualHost
from tests.integration.amqp.messages import PATIENCE, properties

pytestmark = pytest.mark.broker

IMAGES, MAIL = ("shop", "images"), ("office", "mail")


class Operator:
    """A link of an installation's operator, and what it has read: (exchange, routing key)."""

    def __init__(self, parameters: BrokerParameters, installation: str) -> None:
        self.installation = installation
        self.read: list[tuple[str, str]] = []
        synced = asyncio.Event()
        synced.set()
        self.link = BrokerLink(
            parameters,
            installation=installation,
            feed_synced=synced,
            markers=InboxMarkers(),  # of its own: it is another process
            random=Random(0),
        )
        self.link.on_message = self._on_message
        self._more = asyncio.Event()
        self.link.subscribe(self._more.set)

    async def wait_until_up(self) -> LinkUp:
        async with asyncio.timeout(PATIENCE):
            while not isinstance(self.link.state, LinkUp):
                self._more.clear()
                await self._more.wait()
        return self.link.state

    async def serve(self, *keys: QueueKey) -> None:
        up = await self.wait_until_up()
        for key in keys:
            await declare_task_queue(up.connection, *key, self.installation)

    async def wait_for(self, *messages: tuple[str, str]) -> None:
        """Wait for as many messages as these, which must be these, in any order; remove them."""
        async with asyncio.timeout(PATIENCE):
            while len(self.read) < len(messages):
                self._more.clear()
                await self._more.wait()
        assert sorted(self.read) == sorted(messages)
        self.read.clear()

    def _on_message(self, delivery: Delivery, link: BrokerLink) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        self.read.append((delivery.exchange, delivery.routing_key))
        self._more.set()


@asynccontextmanager
async def running(parameters: BrokerParameters, installation: str) -> AsyncIterator[Operator]:
    operator = Operator(parameters, installation)
    task = asyncio.create_task(operator.link.run())
    try:
        yield operator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def operators(parameters: BrokerParameters) -> AsyncIterator[tuple[Operator, Operator]]:
    """The operators of the installations default and team-a, each with a TaskQueue."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running(parameters, "default"))
        other = await stack.enter_async_context(running(parameters, "team-a"))
        await one.serve(IMAGES)
        await other.serve(MAIL)
        yield one, other


@pytest.fixture
async def publisher(connection: Connection) -> Publisher:
    return await Publisher.open(connection)


def reports(key: QueueKey) -> list[tuple[str, str]]:
    """Return what workers of a TaskQueue, and the broker, publish about it: exchange and key."""
    name = routing_key(*key)
    return [
        (OUTCOMES_EXCHANGE, f"{name}.task.succeeded"),
        (DEAD_EXCHANGE, name),
        (HEARTBEATS_EXCHANGE, f"{name}.worker.heartbeat"),
    ]


async def publish(publisher: Publisher, messages: list[tuple[str, str]]) -> set[Settled]:
    told = [
        await publisher.publish_and_wait(exchange, key, b"{}", properties())
        for exchange, key in messages
    ]
    return {verdict for verdict, _ in told}


async def count(connection: Connection, queue: str) -> int | None:
    channel = await connection.channel()
    found = await ready_messages(channel, queue)
    await channel.close()
    return found


async def bind_all_keys(channel: Channel) -> None:
    """Bind the default installation's queues as older operators did."""
    for exchange in (OUTCOMES_EXCHANGE, DEAD_EXCHANGE):
        await channel.bind_queue(INBOX_QUEUE, exchange, "#")
    await channel.bind_queue(HEARTBEATS_QUEUE, HEARTBEATS_EXCHANGE, "#")


async def test_each_operator_gets_what_is_about_its_own_queues(
    operators: tuple[Operator, Operator], publisher: Publisher
) -> None:
    for _ in range(2):
        for operator, key in zip(operators, (IMAGES, MAIL), strict=True):
            assert await publish(publisher, reports(key)) == {Settled.CONFIRMED}
            await operator.wait_for(*reports(key))
    assert [one.read for one in operators] == [[], []]


async def test_what_is_about_a_queue_that_nobody_serves_is_returned(
    operators: tuple[Operator, Operator], publisher: Publisher
) -> None:
    assert await publish(publisher, reports(("shop", "nowhere"))) == {Settled.RETURNED}


async def test_another_operator_of_an_installation_takes_over_while_the_other_one_serves(
    operators: tuple[Operator, Operator], parameters: BrokerParameters, publisher: Publisher
) -> None:
    async with running(parameters, "team-b") as gone:
        await gone.serve(("lab", "x"))
    # Nobody reads for it, and its events wait: those of the two others do not wait with them.
    assert await publish(publisher, reports(("lab", "x"))) == {Settled.CONFIRMED}
    assert await publish(publisher, reports(MAIL)) == {Settled.CONFIRMED}
    await operators[1].wait_for(*reports(MAIL))
    async with running(parameters, "team-b") as successor:
        await successor.wait_until_up()
        await successor.wait_for(*reports(("lab", "x")))
    assert [one.read for one in operators] == [[], []]


async def test_an_older_operators_bindings_go_without_a_gap(
    connection: Connection, channel: Channel, publisher: Publisher
) -> None:
    await declare_operator_topology(connection)
    await bind_all_keys(channel)
    for key in (IMAGES, MAIL):
        await declare_task_queue(connection, *key)
        # The binding for all keys and its own: one copy.
        assert await publish(publisher, reports(key)) == {Settled.CONFIRMED}
    assert await count(connection, INBOX_QUEUE) == 4
    assert await count(connection, HEARTBEATS_QUEUE) == 2
    for _ in range(2):
        await unbind_all_keys(connection, "default")
    for key in (IMAGES, MAIL):
        assert await publish(publisher, reports(key)) == {Settled.CONFIRMED}
    assert await count(connection, INBOX_QUEUE) == 8
    assert await publish(publisher, reports(("shop", "nowhere"))) == {Settled.RETURNED}
    # A downgrade, and an upgrade again.
    await bind_all_keys(channel)
    assert await publish(publisher, reports(("shop", "nowhere"))) == {Settled.CONFIRMED}
    await unbind_all_keys(connection, "default")
    assert await publish(publisher, reports(("shop", "nowhere"))) == {Settled.RETURNED}


async def test_the_queues_of_a_deleted_task_queue_go_with_their_bindings(
    operators: tuple[Operator, Operator], connection: Connection, publisher: Publisher
) -> None:
    for _ in range(2):
        await delete_task_queue(connection, *MAIL, "team-a")
    assert await count(connection, work_queue(*MAIL)) is None
    assert await count(connection, dead_queue(*MAIL)) is None
    assert await publish(publisher, reports(MAIL)) == {Settled.RETURNED}
    assert await publish(publisher, reports(IMAGES)) == {Settled.CONFIRMED}
    await operators[0].wait_for(*reports(IMAGES))
    await operators[1].serve(MAIL)
    assert await publish(publisher, reports(MAIL)) == {Settled.CONFIRMED}
    await operators[1].wait_for(*reports(MAIL))


async def test_nothing_need_exist_for_a_deletion(connection: Connection) -> None:
    await declare_operator_topology(connection)
    await delete_task_queue(connection, *MAIL, "never-seen")
    await unbind_all_keys(connection, "never-seen")
    assert not connection.closed.done()


async def test_the_operators_user_needs_no_more_than_names_that_start_with_taskqueue(
    rabbitmq_vhost: VirtualHost,
) -> None:
    management, name = rabbitmq_vhost.management, rabbitmq_vhost.name
    user = f"operator-{name}"
    management.request("PUT", "users", user, body={"password": "pw", "tags": ""})
    try:
        own = "^taskqueue"
        management.permit(name, user, configure=own, write=own, read=own)
        parameters = BrokerParameters(
            host=rabbitmq_vhost.parameters.host,
            port=rabbitmq_vhost.parameters.port,
            username=user,
            password="pw",
            virtual_host=name,
        )
        connection = await connect(parameters, name="test")
        await declare_operator_topology(connection, "team-a")
        assert await declare_task_queue(connection, *MAIL, "team-a")
        await unbind_all_keys(connection, "team-a")
        assert await count(connection, inbox_queue("team-a")) == 0
        assert await count(connection, heartbeats_queue("team-a")) == 0
        await delete_task_queue(connection, *MAIL, "team-a")
        await connection.close()
    finally:
        management.request("DELETE", "users", user)
