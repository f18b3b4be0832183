"""Keyed work on a real worker whose network fails: it ends before the broker delivers it again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.model.command import CommandKind
from taskqueue.worker.keyed_guard import EXIT_CODE
from tests.faults.relay import Relay, relay_to
from tests.integration.worker.harness import Harness

pytestmark = pytest.mark.broker


@pytest.fixture
async def relay(harness: Harness) -> AsyncIterator[tuple[Relay, BrokerParameters]]:
    async with relay_to(harness.worker_parameters) as made:
        yield made


async def test_a_cut_connection_stops_keyed_work_and_it_runs_again(
    harness: Harness, relay: tuple[Relay, BrokerParameters]
) -> None:
    worker = await harness.ready_worker(slots=2, broker=relay[1])
    keyed, plain = harness.gate("keyed"), harness.gate("plain")
    token = await harness.publish("async_hold", keyed.payload, fence=7)
    other = await harness.publish("async_hold", plain.payload)
    await keyed.wait_until_started()
    await plain.wait_until_started()
    relay[0].cut()
    await worker.logged("task.disowned")
    await worker.logged("task.ended_late")  # it has ended, and only then started again
    await keyed.wait_until_started(2)
    keyed.open()
    plain.open()
    for each in (token, other):
        assert (await harness.outcome(each)).kind is EventKind.SUCCEEDED
    assert len(plain.pids) == 1, "what has no key runs on"
    ends = [kind for kind in harness.reported(token) if kind is not EventKind.STARTED]
    assert ends == [EventKind.SUCCEEDED], "nothing is published about the one that was stopped"


@pytest.mark.parametrize("way", ["cut", "freeze"])
async def test_a_thread_that_does_not_end_takes_the_process_with_it(
    harness: Harness, relay: tuple[Relay, BrokerParameters], way: str
) -> None:
    worker, gate = await harness.ready_worker(broker=relay[1]), harness.gate()
    token = await harness.publish("thread_hold", gate.payload, fence=7)
    await gate.wait_until_started()
    getattr(relay[0], way)()
    aborted = await worker.logged("worker.aborted")
    assert "ctx.cancelled" in aborted["hint"]
    assert await worker.ended() == EXIT_CODE
    assert len(gate.pids) == 1
    if way == "freeze":
        assert await harness.ready() == 0, "the broker has not given it to anybody before"
    relay[0].cut()
    await harness.start_worker()
    await gate.wait_until_started(2)
    gate.open()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED


async def test_a_frozen_network_stops_keyed_work_in_time(
    harness: Harness, relay: tuple[Relay, BrokerParameters]
) -> None:
    worker, gate = await harness.ready_worker(broker=relay[1]), harness.gate()
    await harness.publish("polite", gate.payload, fence=7)
    await gate.wait_until_started()
    relay[0].freeze()
    cut = await worker.logged("task.disowned")
    assert "silent" in cut["reason"]
    await gate.wait_until_started(2)  # it has seen ctx.cancelled
    assert await harness.ready() == 0, "before the broker gave it to anybody"


async def test_a_cancelled_keyed_attempt_is_told_when_it_has_ended(harness: Harness) -> None:
    await harness.ready_worker()
    gate = harness.gate()
    token = await harness.publish("polite", gate.payload, fence=7)
    await gate.wait_until_started()
    await harness.send_commands(WorkerCommand(CommandKind.CANCEL, token=token, uid="u"))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED
    assert len(gate.pids) == 2


async def test_at_the_end_a_keyed_thread_that_runs_on_ends_with_the_process(
    harness: Harness,
) -> None:
    worker, gate = await harness.ready_worker(TASKQUEUE_GRACE_SECONDS="0"), harness.gate()
    token = await harness.publish("thread_hold", gate.payload, fence=7)
    await gate.wait_until_started()
    worker.terminate()
    assert await worker.ended() == EXIT_CODE
    assert set(harness.reported(token)) <= {EventKind.STARTED}, "it is not released while it runs"
    await harness.until_ready(1)
