"""Whatever somebody deletes while the operator is connected: it is declared again, and works."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import pytest

from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import FIRST_COMMAND, WorkerCommand, decode
from taskqueue.contract.names import (
    CONTROL_STREAM,
    EVENTS_EXCHANGE,
    WORK_EXCHANGE,
    routing_key,
)
from taskqueue.contract.topology import Exchange, Part, Queue, operator_topology
from taskqueue.controller.queues import broker_session, topology_watch
from taskqueue.controller.queues.broker_link import BrokerLink, InboxMarkers
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.statistics import StatisticsReaders
from taskqueue.controller.queues.user_sweeper import UserSweeper
from taskqueue.controller.tasks.command_outbox import CommandOutbox
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.client import ApiClient
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueConfig
from tests.integration.amqp.endpoint import VirtualHost
from tests.integration.amqp.messages import PATIENCE, Collector, properties
from tests.integration.amqp.topology_parts import (
    all_parts,
    definitions,
    delete_part,
    name_part,
)

pytestmark = pytest.mark.broker

CONFIG = QueueConfig(namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit")
PARTS = all_parts(*CONFIG.key)


class Work:
    """The dispatcher as far as a session needs it; commands are real."""

    def __init__(self) -> None:
        self.published = 0
        self.republished = 0
        self.commands = CommandOutbox(CONFIG.key, on_owed=lambda: None)

    def open(self, publisher: Publisher) -> None:
        self.commands.open(publisher)

    def close(self) -> None:
        self.commands.close()

    def republish_all(self) -> int:
        self.republished += 1
        return 0

    def on_ready_count(self, ready: int, *, reporting: bool) -> None: ...


class Secret:
    """The API server, which has the Secret of the broker."""

    def __init__(self, parameters: BrokerParameters) -> None:
        values = {
            "host": parameters.host,
            "port": str(parameters.port),
            "username": parameters.username,
            "password": parameters.password,
            "vhost": parameters.virtual_host,
        }
        self._data = {key: base64.b64encode(text.encode()).decode() for key, text in values.items()}

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        return {"data": self._data}


class Operator:
    """The operator's link to the broker, and its side of one TaskQueue."""

    def __init__(self, vhost: VirtualHost) -> None:
        self.vhost = vhost
        self.work = Work()
        synced = asyncio.Event()
        synced.set()
        self.link = BrokerLink(
            vhost.parameters,
            installation="default",
            feed_synced=synced,
            markers=InboxMarkers(),
            random=Random(0),
        )
        self.session = BrokerSession(
            CONFIG.key,
            dispatcher=cast(Dispatcher, self.work),
            client=cast(ApiClient, Secret(vhost.parameters)),
            links=lambda parameters: self.link,
            installation="default",
            on_change=lambda: None,
            on_declared=lambda: None,
            monotonic=asyncio.get_running_loop().time,
            readers=StatisticsReaders(spawn=lambda work, name: asyncio.create_task(work)),
            sweeper=UserSweeper("default", lambda: None),
        )
        self.tasks = [asyncio.create_task(each) for each in (self.link.run(), self._reconcile())]

    async def _reconcile(self) -> None:
        while True:
            await self.session.ensure_declared(CONFIG)
            await self.session.count_messages()
            await asyncio.sleep(0.02)

    @property
    def is_declared(self) -> bool:
        return (
            self.session.declared and self.session.is_bound and bool(self.session.condition.status)
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (self.is_declared and await asyncio.to_thread(holds)):
                assert not any(task.done() for task in self.tasks)
                await asyncio.sleep(0.02)

    async def delete(self, part: Part) -> None:
        await asyncio.to_thread(delete_part, self.vhost, part)

    async def definitions(self) -> set[str]:
        return await asyncio.to_thread(definitions, self.vhost)


@asynccontextmanager
async def running(vhost: VirtualHost) -> AsyncIterator[Operator]:
    operator = Operator(vhost)
    await operator.until(lambda: True)
    try:
        yield operator
    finally:
        for task in operator.tasks:
            task.cancel()
        await asyncio.gather(*operator.tasks, return_exceptions=True)


def set_interval(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(topology_watch, "_SPACING_SECONDS", 0.02)
    for module in (topology_watch, broker_session):
        monkeypatch.setattr(module, "TOPOLOGY_CHECK_SECONDS", seconds)


@pytest.fixture
async def operator(
    rabbitmq_vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    """An operator that looks at its topology again and again."""
    set_interval(monkeypatch, 0.1)
    async with running(rabbitmq_vhost) as operator:
        yield operator


@pytest.fixture
async def patient_operator(
    rabbitmq_vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    """An operator that does not look again unless something gives it a reason."""
    set_interval(monkeypatch, 3600)
    async with running(rabbitmq_vhost) as operator:
        yield operator


@pytest.mark.parametrize("part", PARTS, ids=name_part)
async def test_whatever_is_deleted_is_declared_again(operator: Operator, part: Part) -> None:
    whole = await operator.definitions()
    for _ in range(2):
        await operator.delete(part)
        await operator.until(lambda: definitions(operator.vhost) == whole)


#: What the operator does not notice by itself: a consumer ends with its queue.
UNNOTICED = [
    part
    for part in operator_topology()
    if not isinstance(part, Queue) or part.name == CONTROL_STREAM
]


@pytest.mark.parametrize("part", UNNOTICED, ids=name_part)
async def test_a_returned_message_has_it_declared_again_at_once(
    patient_operator: Operator, part: Part
) -> None:
    operator = patient_operator
    whole = await operator.definitions()
    await operator.delete(part)
    assert await publish(operator, "", "no-such-queue") is Settled.RETURNED
    await operator.until(lambda: definitions(operator.vhost) == whole)


async def test_a_command_that_is_returned_has_the_stream_declared_again(
    patient_operator: Operator, connection: Connection
) -> None:
    operator = patient_operator
    (stream,) = [part for part in PARTS if getattr(part, "name", "") == CONTROL_STREAM]
    whole = await operator.definitions()
    await operator.delete(stream)
    command = WorkerCommand(CommandKind.CANCEL, token="k.1", uid="u")
    operator.work.commands.send(command)
    await operator.until(lambda: definitions(operator.vhost) == whole)
    channel, collector = await connection.channel(), Collector()
    await channel.set_prefetch(10)
    await channel.consume(
        CONTROL_STREAM,
        collector.on_delivery,
        collector.on_cancel,
        arguments={"x-stream-offset": "first"},
    )
    await collector.wait(2)
    assert [decode(body) for body in collector.bodies[:2]] == [FIRST_COMMAND, command]


async def test_work_that_is_returned_has_its_binding_declared_again(
    patient_operator: Operator,
) -> None:
    operator = patient_operator
    whole = await operator.definitions()
    await operator.delete(PARTS[-1])
    assert await publish(operator, WORK_EXCHANGE, routing_key(*CONFIG.key)) is Settled.RETURNED
    operator.session.on_queue_missing()  # as `TaskRunner` does upon such a verdict
    await operator.until(lambda: definitions(operator.vhost) == whole)


async def test_nothing_is_declared_on_top_of_something_else(
    patient_operator: Operator, connection: Connection
) -> None:
    operator = patient_operator
    await operator.delete(Exchange(EVENTS_EXCHANGE))
    channel = await connection.channel()
    await channel.declare_exchange(EVENTS_EXCHANGE, kind="fanout")
    assert await publish(operator, "", "no-such-queue") is Settled.RETURNED
    async with asyncio.timeout(PATIENCE):
        while operator.session.condition.reason != "TopologyConflict":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert EVENTS_EXCHANGE in operator.session.condition.message
    await channel.declare_exchange(EVENTS_EXCHANGE, kind="fanout")  # as it was


async def publish(operator: Operator, exchange: str, key: str) -> Settled:
    publisher = operator.link.publisher
    assert publisher is not None
    verdict, _ = await publisher.publish_and_wait(exchange, key, b"{}", properties())
    return verdict
