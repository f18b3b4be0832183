"""The outbox of an archive at a real RabbitMQ, drained into a real PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.archive.archive import Archive
from taskqueue.archive.history import HistoryFilter
from taskqueue.contract.completion import archive_record, task_completion
from taskqueue.contract.outbox import ARCHIVE_OUTBOX, Outbox
from taskqueue.contract.topology import (
    declare_operator_topology,
    declare_task_queue,
    delete_task_queue,
    ready_messages,
    unbind_outboxes,
)
from taskqueue.controller.queues.archiver import Archiver
from taskqueue.controller.queues.backfill import Backfill
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.kubernetes.client import ApiClient
from taskqueue.model.origin import TaskOrigin
from taskqueue.model.queue import ArchiveConfig
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from tests.integration.amqp.conftest import broker_endpoint, parameters, rabbitmq_vhost
from tests.integration.results.servers import PostgresqlServer

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

__all__ = ["broker_endpoint", "parameters", "rabbitmq_vhost"]

CONFIG = ArchiveConfig(secret="archive")


class Case:
    """A TaskQueue at the broker, and what drains its outbox."""

    def __init__(self, connection: Connection, namespace: str, server: PostgresqlServer) -> None:
        self.connection, self.key = connection, (namespace, "q")
        self.outbox = ARCHIVE_OUTBOX.name(*self.key, "default")
        self.archive = Archive(server.connection())
        self.server = server
        self.is_behind = False
        self.waiting: int | None = 0
        self.archiver = Archiver(
            self.key,
            client=cast(ApiClient, self),
            installation="default",
            backfill=cast(Backfill, self),
            clock=lambda: 1_700_000_000.0,
        )

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        uri = self.server.connection().uri
        return {"data": {"uri": base64.b64encode(uri.encode()).decode()}}

    async def run(self, archive: Archive, retention_seconds: int | None) -> None:
        await asyncio.Event().wait()

    def outbox_waiting(self, sink: str) -> int:
        return 0

    def outbox_connection(self, sink: str) -> Connection:
        return self.connection

    async def declare(self, *sinks: Outbox) -> None:
        await declare_operator_topology(self.connection)
        await declare_task_queue(self.connection, *self.key, sinks=sinks)

    async def start(self) -> None:
        await self.archiver.reconcile(CONFIG, cast(BrokerSession, self))

    async def publish(self, *numbers: int, size: int = 0) -> list[Settled]:
        publisher = await Publisher.open(self.connection)
        waiting = [publisher.publish_and_wait(*self._message(one, size)) for one in numbers]
        try:
            return [verdict for verdict, _ in await asyncio.gather(*waiting)]
        finally:
            await publisher.close()

    def _message(self, number: int, size: int) -> tuple[str, str, bytes, Any]:
        task = Task(
            namespace=self.key[0],
            name=f"t-{number}",
            uid=f"{self.key[0]}-{number}",
            generation=1,
            created=1.0,
            spec=TaskSpec(queue="q", handler="resize"),
        )
        status = TaskState(
            phase=Phase.SUCCEEDED, completion_time=1_699_999_999.0, result={"data": "x" * size}
        )
        record = archive_record(task, status, TaskOrigin(), None)
        message = task_completion(task, status, record).message()
        return message.exchange, message.key, message.body, message.properties()

    async def ready(self) -> int | None:
        return await ready_messages(await self.connection.channel(), self.outbox)

    async def rows(self) -> set[str]:
        found = await self.archive.read(HistoryFilter(namespace=self.key[0]), rows=10_000)
        assert len({row.uid for row in found}) == len(found)
        return {row.name for row in found}

    async def wait_for_rows(self, count: int) -> set[str]:
        for _ in range(300):
            try:
                rows = await self.rows()
            except Exception:  # the server is just being started
                rows = set()
            if len(rows) >= count:
                return rows
            await asyncio.sleep(0.1)
        raise AssertionError(f"{len(rows)} of {count} rows")


@pytest.fixture
async def case(parameters: BrokerParameters, server: PostgresqlServer) -> AsyncIterator[Case]:
    connection = await connect(parameters, name="archive")
    case = Case(connection, parameters.virtual_host, server)
    yield case
    await case.archiver.close()
    await case.archive.close()
    await connection.close()


async def test_ends_go_through_the_outbox_while_the_database_is_killed(case: Case) -> None:
    await case.declare(ARCHIVE_OUTBOX)
    await case.start()
    verdicts = await case.publish(*range(300))
    case.server.kill()
    verdicts += await case.publish(*range(300, 600))
    case.server.start()
    verdicts += await case.publish(*range(600, 900), 1, 301)
    assert set(verdicts) == {Settled.CONFIRMED}
    assert await case.wait_for_rows(900) == {f"t-{number}" for number in range(900)}
    for _ in range(100):
        if await case.ready() == 0:
            break
        await asyncio.sleep(0.1)
    assert await case.ready() == 0


async def test_a_full_outbox_refuses_and_has_room_again(case: Case) -> None:
    await case.declare(replace(ARCHIVE_OUTBOX, limit_bytes=200_000))
    verdicts: list[Settled] = []
    for number in range(0, 400, 20):
        verdicts += await case.publish(*range(number, number + 20), size=5000)
    kept = verdicts.count(Settled.CONFIRMED)
    assert 20 <= kept < 300
    assert verdicts[-1] is Settled.UNKNOWN
    await case.start()
    # A refused one may be there all the same; none that was confirmed is missing.
    rows = await case.wait_for_rows(kept)
    confirmed = {f"t-{number}" for number, one in enumerate(verdicts) if one is Settled.CONFIRMED}
    assert confirmed <= rows
    for _ in range(100):
        if await case.publish(1000, size=5000) == [Settled.CONFIRMED]:
            break
        await asyncio.sleep(0.1)
    await case.wait_for_rows(len(rows) + 1)


async def test_only_a_queue_with_an_archive_has_an_outbox(case: Case) -> None:
    await case.declare()
    assert await case.ready() is None
    assert await case.publish(1) == [Settled.RETURNED]  # as mandatory: nobody is bound
    await unbind_outboxes(case.connection, [ARCHIVE_OUTBOX], *case.key, "default")
    await case.declare(ARCHIVE_OUTBOX)
    assert await case.publish(2) == [Settled.CONFIRMED]
    assert await case.ready() == 1
    await unbind_outboxes(case.connection, [ARCHIVE_OUTBOX], *case.key, "default")
    assert await case.publish(3) == [Settled.RETURNED]
    assert await case.ready() == 1  # what is there stays
    await delete_task_queue(case.connection, *case.key, "default")
    assert await case.ready() is None
