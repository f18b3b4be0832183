"""Whatever somebody deletes at the broker, the worker keeps what it reports, and works on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from pika.spec import BasicProperties

from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    HEARTBEATS_QUEUE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
)
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.topology import Exchange, Part, Queue
from taskqueue.model.worker import WorkerState
from tests.integration.amqp.topology_parts import all_parts, delete_part, name_part
from tests.integration.worker.harness import Harness
from tests.integration.worker.process import HANDLERS
from tests.integration.worker.test_heartbeats import Register

pytestmark = pytest.mark.broker

PARTS = all_parts("shop", "q")
QUICK = (HANDLERS, "tests.integration.worker.quick_reports")


async def delete(harness: Harness, part: Part) -> None:
    await asyncio.to_thread(delete_part, harness.vhost, part)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them has ended."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("part", PARTS, ids=name_part)
async def test_a_worker_outlives_whatever_is_deleted(harness: Harness, part: Part) -> None:
    register, gate = await Register.of(harness), harness.gate()
    worker = await harness.ready_worker(slots=2, arguments=QUICK)
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    await delete(harness, part)
    gate.open()
    await first_of(
        harness.outcome(token), worker.logged("publisher.lost"), worker.logged("outcome.returned")
    )
    await harness.declare()  # as the operator does
    if isinstance(part, Queue) and part.name == INBOX_QUEUE:
        await harness.read_inbox()
    if isinstance(part, Queue) and part.name == HEARTBEATS_QUEUE:
        register = await Register.of(harness)
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED
    register.heartbeats.clear()
    await register.wait(lambda heartbeat: heartbeat.busy == 0)
    assert len(gate.pids) == 1
    worker.terminate()
    assert await worker.ended() == 0


#: A message that claims to be the operator's, and is not: it becomes a dead letter.
MALFORMED = BasicProperties(headers={"tq-token": "k.1", "tq-version": 7}, type="noop")


@pytest.mark.parametrize("exchange", [OUTCOMES_EXCHANGE, DEAD_EXCHANGE])
async def test_heartbeats_arrive_while_an_exchange_is_missing(
    harness: Harness, exchange: str
) -> None:
    register = await Register.of(harness)
    worker = await harness.ready_worker(slots=2, arguments=QUICK)
    await delete(harness, Exchange(exchange))
    token = await harness.publish("noop")
    await harness.send(MALFORMED, b"{}")
    lost = await worker.logged("publisher.lost")
    assert f"404 NOT_FOUND - no exchange '{exchange}'" in lost["reason"]
    for _ in range(3):
        register.heartbeats.clear()
        await register.state(WorkerState.READY)
    await harness.declare()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    assert "tq-version is 7" in (await harness.dead_letter()).properties.headers["tq-error"]
    await harness.until_ready(0)
