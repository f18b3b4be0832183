"""The figures of a real broker's queues: right, or absent; never zero because they are unknown."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import MANAGEMENT_URI, BrokerParameters, ManagementEndpoint
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.names import WORK_EXCHANGE, routing_key, work_queue
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.contract.topology import (
    declare_operator_topology,
    declare_task_queue,
    ready_messages,
)
from taskqueue.controller.queues.backlog import BacklogEstimate, BacklogMeter
from taskqueue.controller.queues.statistics import QueueStatistics, StatisticsReaders
from taskqueue.controller.tasks.published_attempts import PublishedPeak
from taskqueue.direct import management_api
from taskqueue.direct.management_api import StatisticsClient, StatisticsUnreadable
from taskqueue.model.queue_stats import QueueStats
from tests.conftest import Kubectl, wait_for_port
from tests.faults.relay import relay_to
from tests.integration.amqp.own_broker import OwnBroker, own_broker, uri
from tests.integration.amqp.test_tls import Certificate, make_certificate, server_context

pytestmark = [pytest.mark.broker, pytest.mark.cluster]

OWN = OutgoingMessage(exchange="", key="", body=b"", content_type=None).properties()
#: RabbitMQ renews figures every 5 s, twice over; so many seconds are a broker that never does.
SECONDS = 60


@pytest.fixture(scope="module")
def rabbit(kubectl: Kubectl, node_address: str) -> Iterator[OwnBroker]:
    with own_broker(kubectl, f"test-{uuid.uuid4().hex[:10]}", node_address) as broker:
        for port in (broker.port, broker.management_port):
            wait_for_port(node_address, port)
        yield broker


@pytest.fixture
def broker(rabbit: OwnBroker) -> BrokerParameters:
    """A virtual host of the test's own, with a name that needs encoding."""
    name = f'a/"{uuid.uuid4().hex[:8]}"%2F'
    rabbit.virtual_host(name)
    return BrokerParameters(
        host=rabbit.host,
        port=rabbit.port,
        username=rabbit.username,
        password=rabbit.password,
        virtual_host=name,
    )


def endpoint_of(rabbit: OwnBroker, broker: BrokerParameters, **data: str) -> ManagementEndpoint:
    named = {MANAGEMENT_URI: uri(rabbit.host, rabbit.management_port)} | data
    found = ManagementEndpoint.from_mapping(named, broker)
    assert found is not None
    return found


@asynccontextmanager
async def reading(endpoint: ManagementEndpoint) -> AsyncIterator[StatisticsClient]:
    client = StatisticsClient(endpoint)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def queue(broker: BrokerParameters) -> AsyncIterator[tuple[str, Connection]]:
    """A TaskQueue's queue, just declared."""
    connection = await connect(broker, name="test")
    try:
        await declare_operator_topology(connection)
        await declare_task_queue(connection, "shop", "q")
        yield work_queue("shop", "q"), connection
    finally:
        await connection.close()


async def publish(connection: Connection, number: int) -> None:
    """Publish direct messages."""
    publisher = await Publisher.open(connection)
    message = OutgoingMessage(
        exchange=WORK_EXCHANGE, key=routing_key("shop", "q"), body=b"{}", content_type=None
    )
    for _ in range(number):
        verdict, text = await publisher.publish_and_wait(
            message.exchange, message.key, message.body, message.properties()
        )
        assert verdict is Settled.CONFIRMED, text


async def hold(connection: Connection, name: str, number: int) -> Channel:
    """Have so many messages delivered, and acknowledge none."""
    channel = await connection.channel()
    await channel.set_prefetch(number)
    held: list[Any] = []
    all_held = asyncio.Event()

    def take(delivery: object) -> None:
        held.append(delivery)
        if len(held) == number:
            all_held.set()

    await channel.consume(name, take, lambda reason: None)
    await all_held.wait()
    return channel


async def seen_until(
    client: StatisticsClient, name: str, wanted: QueueStats | None
) -> list[QueueStats | None]:
    """Read until the figures are as wanted; return all that were read, failures left out."""
    seen: list[QueueStats | None] = []
    async with asyncio.timeout(SECONDS):
        while not seen or seen[-1] != wanted:
            try:
                seen.append((await client.read()).get(name))
            except StatisticsUnreadable:
                continue
            finally:
                await asyncio.sleep(0.3)
    return seen


async def test_figures_of_direct_messages(rabbit: OwnBroker, broker: BrokerParameters) -> None:
    async with (
        queue(broker) as (name, connection),
        reading(endpoint_of(rabbit, broker)) as client,
    ):
        assert name not in await client.read()  # just declared: unknown
        await publish(connection, 5)
        await hold(connection, name, 2)
        await seen_until(client, name, QueueStats(3, 2))


async def test_a_broker_that_starts_again_has_no_figures_rather_than_wrong_ones(
    rabbit: OwnBroker, broker: BrokerParameters
) -> None:
    async with reading(endpoint_of(rabbit, broker)) as client:
        async with queue(broker) as (name, connection):
            await publish(connection, 5)
            await hold(connection, name, 2)
            await seen_until(client, name, QueueStats(3, 2))
            await asyncio.to_thread(rabbit.start_anew)
        seen = await seen_until(client, name, QueueStats(5, 0))
        assert set(seen) <= {None, QueueStats(5, 0)}


async def test_a_broker_that_keeps_no_statistics_tells_totals(
    rabbit: OwnBroker, broker: BrokerParameters
) -> None:
    setting = "application:set_env(rabbitmq_management, disable_management_stats, {})."
    await asyncio.to_thread(rabbit.evaluate, setting.format("true"))
    try:
        async with (
            queue(broker) as (name, connection),
            reading(endpoint_of(rabbit, broker)) as client,
        ):
            await publish(connection, 5)
            await hold(connection, name, 2)
            await seen_until(client, name, QueueStats(3, 2))
    finally:
        await asyncio.to_thread(rabbit.evaluate, setting.format("false"))


async def unreadable(endpoint: ManagementEndpoint) -> str:
    async with reading(endpoint) as client:
        with pytest.raises(StatisticsUnreadable) as caught:
            await client.read()
    assert not endpoint.password or endpoint.password not in str(caught.value)
    return str(caught.value)


async def test_a_wrong_password(rabbit: OwnBroker, broker: BrokerParameters) -> None:
    wrong = replace(endpoint_of(rabbit, broker), password="wr0ng")
    assert "answered 401: check the password of user taskqueue" in await unreadable(wrong)


async def test_a_user_without_the_tag(rabbit: OwnBroker, broker: BrokerParameters) -> None:
    rabbit.management().request("PUT", "users", "plain", body={"password": "pl4in", "tags": ""})
    plain = replace(endpoint_of(rabbit, broker), username="plain", password="pl4in")
    assert "give that user the tag management" in await unreadable(plain)


async def test_a_virtual_host_that_is_not_there(
    rabbit: OwnBroker, broker: BrokerParameters
) -> None:
    gone = replace(broker, virtual_host="g/one")
    assert "the virtual host g/one exists" in await unreadable(endpoint_of(rabbit, gone))


async def test_what_is_no_endpoint_at_all(rabbit: OwnBroker, broker: BrokerParameters) -> None:
    amqp = uri(rabbit.host, rabbit.port)
    assert "it is not HTTP: check that the address is RabbitMQ's" in await unreadable(
        endpoint_of(rabbit, broker, managementUri=amqp)
    )


async def test_an_endpoint_cut_off_and_back(
    rabbit: OwnBroker, broker: BrokerParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = replace(broker, port=rabbit.management_port)
    async with relay_to(behind) as (relay, relayed):
        address = uri(relayed.host, relayed.port)
        endpoint = endpoint_of(rabbit, broker, managementUri=address)
        async with reading(endpoint) as client:
            await client.read()
            with monkeypatch.context() as hurried, relay.black_hole():
                hurried.setattr(management_api, "READ_SECONDS", 0.5)
                with pytest.raises(StatisticsUnreadable, match=r"no answer within 0\.5 s"):
                    await client.read()
                relay.cut()
            await client.read()
    assert "nothing listens there" in await unreadable(endpoint)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server", "IP:127.0.0.1")


async def test_tls_with_the_authority_of_the_secret(
    rabbit: OwnBroker, broker: BrokerParameters, certificate: Certificate
) -> None:
    behind = replace(broker, port=rabbit.management_port)
    async with relay_to(behind, tls=server_context(certificate)) as (_, relayed):
        address = uri(relayed.host, relayed.port, scheme="https")
        trusting = replace(broker, ca_certificate=certificate.text)
        async with reading(endpoint_of(rabbit, trusting, managementUri=address)) as client:
            await client.read()
        told = await unreadable(endpoint_of(rabbit, broker, managementUri=address))
        assert "the certificate is not trusted: put its authority into ca.crt" in told


class Flow:
    """Own Tasks that come and go as fast as the broker takes them, as the operator knows them."""

    def __init__(self) -> None:
        self.peak = PublishedPeak()
        self.published = 0
        self._room = asyncio.Event()
        self._room.set()

    async def publish(self, connection: Connection, stop: asyncio.Event) -> None:
        publisher = await Publisher.open(connection)
        while not stop.is_set():
            for _ in range(20):
                self.published += 1
                self.peak.add(now())
                publisher.publish(
                    WORK_EXCHANGE, routing_key("shop", "q"), b"{}", OWN, lambda *_: None
                )
            self._room.clear()
            await self._room.wait()

    def end(self, delivery: Delivery) -> None:
        """The outcome is known before the message is acknowledged."""
        self.published -= 1
        self.peak.remove(now())
        delivery.channel.ack(delivery.delivery_tag)
        if self.published == 0:
            self._room.set()


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_tasks_that_come_and_go_fast_are_no_direct_messages_and_one_that_runs_is(
    rabbit: OwnBroker, broker: BrokerParameters
) -> None:
    endpoint = endpoint_of(rabbit, broker)
    readers = StatisticsReaders(
        spawn=lambda work, name: asyncio.get_running_loop().create_task(work, name=name)
    )
    meter, flow, stop = BacklogMeter(), Flow(), asyncio.Event()
    async with queue(broker) as (name, connection):
        statistics = QueueStatistics(name, readers=readers, meter=meter)
        statistics.set_endpoint(endpoint, "", now())
        reader = readers.acquire(endpoint, "test")
        probe = await connection.channel()

        async def signal() -> BacklogEstimate:
            before = flow.published
            ready = await ready_messages(probe, name)
            assert ready is not None
            most = max(before, flow.published, flow.peak.pop(now()))
            meter.set_ready(ready, published=most, now=now())
            error = statistics.update_meter()
            return meter.update_estimate(
                waiting=0, published=flow.published, workers_foreign=0, now=now(), error=error
            )

        async def readings(number: int) -> AsyncIterator[BacklogEstimate]:
            """Yield signals until the statistics were read so often again."""
            seen = {reader.reading and reader.reading.at}
            async with asyncio.timeout(SECONDS):
                while len(seen) <= number:
                    yield await signal()
                    seen.add(reader.reading and reader.reading.at)
                    await asyncio.sleep(0.05)

        worker = await connection.channel()
        await worker.set_prefetch(10)
        consumer = await worker.consume(name, flow.end, lambda reason: None)
        publishing = asyncio.create_task(flow.publish(connection, stop))
        async for told in readings(4):
            assert told.backlog == flow.published
        stop.set()
        await publishing
        async for told in readings(2):
            assert told.backlog == flow.published
        assert flow.published == 0
        await worker.cancel(consumer)
        await publish(connection, 3)
        await hold(connection, name, 2)
        async with asyncio.timeout(SECONDS):
            while (told := await signal()) != BacklogEstimate(backlog=3, ready=1, running=2):
                assert told.backlog is not None
                assert 1 <= told.backlog <= 3
                await asyncio.sleep(0.2)
        statistics.close()
        readers.release(endpoint, "test")
