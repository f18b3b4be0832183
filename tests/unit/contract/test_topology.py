"""What is missing is declared again, whatever it is; what is out of service is not missing."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.amqp.channel import Channel, ChannelRefused, QueueCounts
from taskqueue.contract.names import work_queue
from taskqueue.contract.topology import (
    Exchange,
    Part,
    Queue,
    declare_operator_topology,
    declare_task_queue,
    operator_topology,
    ready_messages,
    task_queue_topology,
)
from tests.unit.contract.bindings import BindingTable

SHARED = operator_topology("team-a")
OWN = task_queue_topology("shop", "q", "team-a")


class Refusing:
    """A channel whose broker refuses to look at a queue."""

    def __init__(self, code: int, text: str) -> None:
        self._refusal = ChannelRefused(code, text)

    async def count_queue(self, name: str) -> QueueCounts:
        raise self._refusal


async def ask(code: int, text: str) -> int | None:
    return await ready_messages(cast(Channel, Refusing(code, text)), "q")


async def test_a_missing_queue_is_none() -> None:
    assert await ask(404, "NOT_FOUND - no queue 'q' in vhost '/'") is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor"),
        (404, "NOT_FOUND - home node 'mq' of durable queue 'q' in vhost '/' is down"),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'"),
        (403, "ACCESS_REFUSED - operation not permitted"),
    ],
    ids=["stopped", "node down", "locked", "not allowed"],
)
async def test_anything_else_is_not_taken_for_missing(code: int, text: str) -> None:
    with pytest.raises(ChannelRefused) as refused:
        await ask(code, text)
    assert (refused.value.code, refused.value.text) == (code, text)


@given(st.lists(st.sampled_from([*SHARED, *OWN]), max_size=8))
def test_what_was_deleted_is_declared_again_and_named(deleted: list[Part]) -> None:
    async def run() -> None:
        table, whole = BindingTable(), BindingTable()
        for each in (table, whole):
            await declare_operator_topology(each.connection, "team-a")
            await declare_task_queue(each.connection, "shop", "q", "team-a")
        for part in deleted:
            table.delete(part)
        created = await declare_operator_topology(table.connection, "team-a")
        assert created == {
            part.name for part in deleted if part in SHARED and isinstance(part, Exchange | Queue)
        }
        renewed = await declare_task_queue(table.connection, "shop", "q", "team-a")
        assert renewed == any(
            isinstance(part, Queue) and part.name == work_queue("shop", "q") for part in deleted
        )
        del table.on_change, whole.on_change
        assert vars(table) == vars(whole)

    asyncio.run(run())
