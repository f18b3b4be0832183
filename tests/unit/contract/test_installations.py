"""Who gets what is published about a TaskQueue, at each moment of an operator's life."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.names import (
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    HEARTBEATS_QUEUE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
    dead_queue,
    heartbeats_queue,
    inbox_queue,
    marker_key,
    operator_name,
    queue_of_key,
    routing_key,
    work_queue,
)
from taskqueue.contract.topology import (
    declare_operator_topology,
    declare_task_queue,
    delete_task_queue,
    unbind_all_keys,
)
from taskqueue.model.queue import QueueKey
from tests.unit.contract.bindings import BindingTable

#: Few, and such that a key may look like another's, or like a marker's.
NAMES = st.sampled_from(["a", "a-b", "marker", "taskqueue-operator", "task", "inbox"])
KEYS = st.tuples(NAMES, NAMES)
INSTALLATIONS = st.sampled_from(["default", "a", "inbox"])
SERVED = st.dictionaries(KEYS, INSTALLATIONS, max_size=5)


def assert_routed(table: BindingTable, key: QueueKey, *installations: str) -> None:
    """Assert that these installations, and no others, get to know what becomes of the work."""
    inboxes = {inbox_queue(one) for one in installations}
    name = routing_key(*key)
    for event in ("task.succeeded", "task.checkpoint", "unheard"):
        assert table.route(OUTCOMES_EXCHANGE, f"{name}.{event}") == inboxes
    assert table.route(DEAD_EXCHANGE, name) - {dead_queue(*key)} == inboxes
    heartbeats = table.route(HEARTBEATS_EXCHANGE, f"{name}.worker.heartbeat")
    assert heartbeats == {heartbeats_queue(one) for one in installations}


def assert_work_is_routed(table: BindingTable, served: set[QueueKey], installation: str) -> None:
    """Assert it for those whose work queue exists: there may be work in it."""
    for key in served:
        if work_queue(*key) in table.queues:
            assert_routed(table, key, installation)


def test_the_default_installation_has_the_names_it_always_had() -> None:
    assert (INBOX_QUEUE, inbox_queue("default")) == ("taskqueue-operator.inbox",) * 2
    assert (HEARTBEATS_QUEUE, marker_key("default")) == (
        "taskqueue-operator.heartbeats",
        "taskqueue-operator.marker",
    )
    assert operator_name("default") == "taskqueue-operator"


def test_other_installations_carry_their_names() -> None:
    assert operator_name("team-a") == "taskqueue-operator.team-a"
    assert inbox_queue("team-a") == "taskqueue-operator.team-a.inbox"
    assert heartbeats_queue("team-a") == "taskqueue-operator.team-a.heartbeats"
    assert marker_key("team-a") == "taskqueue-operator.team-a.marker"


def test_a_routing_key_names_its_queue() -> None:
    for key in ("shop.q", "shop.q.task.succeeded", "shop.q.worker.heartbeat"):
        assert queue_of_key(key) == ("shop", "q")
    assert queue_of_key("odd") == ("odd", "")


@given(served=SERVED)
def test_events_reach_the_installation_that_serves_the_queue_and_no_other(
    served: dict[QueueKey, str],
) -> None:
    async def run() -> None:
        table = BindingTable()
        for installation in ("default", "a", "inbox"):
            await declare_operator_topology(table.connection, installation)
        for key, installation in served.items():
            await declare_task_queue(table.connection, *key, installation)
        for key, installation in served.items():
            assert_routed(table, key, installation)
        for installation in ("default", "a", "inbox"):
            reached = table.route(OUTCOMES_EXCHANGE, marker_key(installation))
            assert inbox_queue(installation) in reached
        for key, installation in served.items():
            await delete_task_queue(table.connection, *key, installation)
        markers = {(inbox_queue(one), OUTCOMES_EXCHANGE, marker_key(one)) for one in served_by}
        assert table.bindings == markers
        assert table.queues == {
            CONTROL_STREAM,
            *(inbox_queue(one) for one in served_by),
            *(heartbeats_queue(one) for one in served_by),
        }

    served_by = ("default", "a", "inbox")
    asyncio.run(run())


@given(served=st.sets(KEYS, min_size=1, max_size=4), old=st.sets(KEYS, max_size=4))
def test_no_moment_of_an_upgrade_leaves_a_served_queue_without_a_route(
    served: set[QueueKey], old: set[QueueKey]
) -> None:
    """From an operator that bound its inbox for every key; some work queues are there already."""

    async def run() -> None:
        table = BindingTable()
        await declare_operator_topology(table.connection)
        await bind_all_keys(table)
        for key in old:
            table.queues |= {work_queue(*key), dead_queue(*key)}
        table.on_change = lambda: assert_work_is_routed(table, served, "default")
        await declare_operator_topology(table.connection)
        for key in sorted(served):
            await declare_task_queue(table.connection, *key)
        await unbind_all_keys(table.connection, "default")
        assert not any(key == "#" for _, _, key in table.bindings)
        await bind_all_keys(table)  # as the older operator does after a downgrade
        await unbind_all_keys(table.connection, "default")

    asyncio.run(run())


@given(served=st.sets(KEYS, min_size=1, max_size=4))
def test_a_work_queue_has_routes_for_its_ends_from_its_first_moment_to_its_last(
    served: set[QueueKey],
) -> None:
    async def run() -> None:
        table = BindingTable()
        await declare_operator_topology(table.connection, "a")
        table.on_change = lambda: assert_work_is_routed(table, served, "a")
        for key in sorted(served):
            await declare_task_queue(table.connection, *key, "a")
        for key in sorted(served):
            await delete_task_queue(table.connection, *key, "a")

    asyncio.run(run())


async def test_what_does_not_exist_is_no_obstacle_to_a_deletion() -> None:
    table = BindingTable()
    await delete_task_queue(table.connection, "shop", "q", "a")
    await unbind_all_keys(table.connection, "a")


async def bind_all_keys(table: BindingTable) -> None:
    channel = await table.channel()
    for exchange in (OUTCOMES_EXCHANGE, DEAD_EXCHANGE):
        await channel.bind_queue(INBOX_QUEUE, exchange, "#")
    await channel.bind_queue(HEARTBEATS_QUEUE, HEARTBEATS_EXCHANGE, "#")
