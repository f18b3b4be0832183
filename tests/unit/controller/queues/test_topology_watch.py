"""What somebody deletes is declared again, soon and without a reconnect; virtual time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.topology import (
    Exchange,
    Part,
    Queue,
    TopologyConflict,
    declare_operator_topology,
    operator_topology,
)
from taskqueue.controller.queues.topology_watch import TopologyWatch
from taskqueue.limits import TOPOLOGY_CHECK_SECONDS
from tests.unit.contract.bindings import BindingTable

pytestmark = pytest.mark.looptime

PARTS = operator_topology("team-a")


class Broker(BindingTable):
    """A broker with the whole topology, and the watch that keeps it so."""

    parameters = BrokerParameters(host="rabbit", port=5672, username="u", password="p")

    def __init__(self) -> None:
        super().__init__()
        self.checks: list[float] = []
        self.failures: list[Exception] = []
        self.recreated: list[frozenset[str]] = []
        self.watch = TopologyWatch(self.connection, "team-a", on_recreated=self.recreated.append)

    async def channel(self) -> Any:
        self.checks.append(asyncio.get_running_loop().time())
        if self.failures:
            raise self.failures.pop(0)
        return await super().channel()

    @property
    def content(self) -> tuple[set[Any], ...]:
        return (
            set(self.exchanges),
            set(self.queues),
            set(self.bindings),
            set(self.exchange_bindings),
        )

    async def __aenter__(self) -> Broker:
        await declare_operator_topology(self.connection, "team-a")
        self.checks.clear()
        self.whole = self.content
        self.task = asyncio.create_task(self.watch.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@pytest.mark.parametrize("part", PARTS, ids=str)
async def test_whatever_is_deleted_is_declared_again(part: Part) -> None:
    async with Broker() as broker:
        broker.delete(part)
        assert broker.content != broker.whole
        await asyncio.sleep(TOPOLOGY_CHECK_SECONDS + 1)
        assert broker.content == broker.whole
        named = [frozenset({part.name})] if isinstance(part, Exchange | Queue) else []
        assert broker.recreated == named


@pytest.mark.parametrize("part", PARTS, ids=str)
async def test_a_returned_message_is_reason_to_look_at_once(part: Part) -> None:
    async with Broker() as broker:
        await asyncio.sleep(3)
        broker.delete(part)
        broker.watch.on_return()
        await asyncio.sleep(0.1)
        assert broker.content == broker.whole


async def test_many_returned_messages_are_one_reason_a_second() -> None:
    async with Broker() as broker:
        for _ in range(500):
            broker.watch.on_return()
            await asyncio.sleep(0.01)
        assert 5 <= len(broker.checks) <= 6


async def test_a_queue_without_a_leader_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with Broker() as broker:
        broker.failures.append(ChannelRefused(404, "NOT_FOUND - queue 'q' process is stopped"))
        broker.delete(PARTS[0])
        await asyncio.sleep(TOPOLOGY_CHECK_SECONDS + 0.1)
        assert broker.recreated == []
        assert [one.getMessage() for one in caplog.records] == ["topology.check_failed"]
        await asyncio.sleep(TOPOLOGY_CHECK_SECONDS + 1)
        assert broker.content == broker.whole


@pytest.mark.parametrize(
    "failure",
    [
        ChannelRefused(403, "ACCESS_REFUSED - configure access refused"),
        BrokerUnavailable("the connection was lost"),
        TopologyConflict(Queue("taskqueue.control", {}), "inequivalent arg"),
    ],
    ids=["forbidden", "lost", "conflict"],
)
async def test_what_cannot_be_declared_any_more_ends_it(failure: Exception) -> None:
    async with Broker() as broker:
        broker.failures.append(failure)
        await asyncio.sleep(TOPOLOGY_CHECK_SECONDS + 1)
        assert broker.task.done()
        with pytest.raises(type(failure)):
            await broker.task
        broker.task = asyncio.create_task(broker.watch.run())
