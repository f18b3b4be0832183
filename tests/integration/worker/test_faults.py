"""A real worker whose broker, connection or life is taken away, and its orderly end."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.contract.names import INBOX_QUEUE
from taskqueue.contract.outcome import EventKind
from tests.integration.worker.harness import Stage
from tests.integration.worker.process import PATIENCE, WorkerProcess

pytestmark = pytest.mark.broker


async def test_a_killed_worker_is_tried_again_until_the_limit_and_then_called_lost(
    stage: Stage,
) -> None:
    gate = stage.gate()
    token = await stage.publish("hold", gate.payload, max_deliveries=2)
    for times in (1, 2):
        worker = await stage.start_worker()
        await gate.begun(times)
        await worker.kill()
    await stage.start_worker()
    event = await stage.outcome(token)
    assert event.error is not None
    assert (event.error.type, event.error.retryable) == ("WorkerLost", True)
    assert "2 times" in event.error.message
    assert len(set(gate.pids)) == 2, "not run a third time"
    await stage.until_ready(0)


async def test_sigterm_lets_the_running_end_and_gives_back_the_rest(stage: Stage) -> None:
    worker, gate = await stage.ready_worker(slots=1, TASKQUEUE_LOG_LEVEL="DEBUG"), stage.gate()
    for token in [await stage.publish("noop") for _ in range(120)]:
        await stage.outcome(token)  # short runs: deliveries are now fetched ahead
    await worker.logged("prefetch.changed")
    await worker.logged("consumer.registered", times=2)
    running = await stage.publish("hold", gate.payload)
    await gate.begun()
    ahead = [await stage.publish("noop") for _ in range(3)]
    await stage.until_ready(0)
    worker.terminate()
    for token in ahead:
        assert (await stage.outcome(token)).kind is EventKind.RELEASED
    await worker.logged("worker.stopping")
    await stage.publish("noop")
    gate.open()
    assert (await stage.outcome(running)).kind is EventKind.SUCCEEDED
    assert await worker.ended() == 0
    await stage.until_ready(1)  # what came after the signal was left alone


@pytest.mark.parametrize("handler", ["hold", "thread_hold", "async_hold"])
async def test_after_the_grace_period_the_running_is_released(stage: Stage, handler: str) -> None:
    gate = stage.gate()
    worker = await stage.ready_worker(TASKQUEUE_GRACE_SECONDS="0.2")
    token = await stage.publish(handler, gate.payload)
    await gate.begun()
    worker.terminate()
    assert (await stage.outcome(token)).kind is EventKind.RELEASED
    assert await worker.ended() == 0, "a handler that never returns does not hold it up"
    assert await stage.ready() == 0, "released by an event, not by a requeue"


async def test_a_second_signal_ends_it_at_once(stage: Stage) -> None:
    gate = stage.gate()
    worker = await stage.ready_worker()
    await stage.publish("hold", gate.payload)
    await gate.begun()
    worker.terminate()
    await worker.logged("worker.stopping")
    worker.terminate()
    assert await worker.ended() == 128 + 15
    await stage.until_ready(1)


async def test_an_idle_worker_stops_at_once(stage: Stage) -> None:
    worker = await stage.ready_worker()
    worker.terminate()
    assert await worker.ended() == 0


async def test_a_closed_connection_is_made_anew_and_the_running_attempt_ends_once(
    stage: Stage,
) -> None:
    worker, gate = await stage.ready_worker(slots=2), stage.gate()
    token = await stage.publish("hold", gate.payload)
    await gate.begun()
    await stage.close_connections()
    await worker.logged("consumer.ready", times=2)
    await stage.until_ready(0)  # delivered again, to the worker that still runs it
    gate.open()
    assert (await stage.outcome(token)).kind is EventKind.SUCCEEDED
    second = await stage.publish("noop")
    assert (await stage.outcome(second)).kind is EventKind.SUCCEEDED
    assert len(gate.pids) == 1
    worker.terminate()
    assert await worker.ended() == 0
    await stage.until_ready(0)


async def test_a_worker_waits_for_its_queue(empty_stage: Stage) -> None:
    stage = empty_stage
    worker = await stage.start_worker()
    waiting = await worker.logged("consumer.waiting")
    assert "taskqueue.shop.q does not exist yet" in waiting["reason"]
    await stage.declare()
    await stage.read_inbox()
    token = await stage.publish("noop")
    assert (await stage.outcome(token)).kind is EventKind.SUCCEEDED
    assert [line["event"] for line in worker.log].count("consumer.waiting") == 1


async def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(stage: Stage) -> None:
    worker = await stage.ready_worker()
    await stage.channel.delete_queue("taskqueue.shop.q")
    await worker.logged("consumer.waiting", where=lambda line: "does not exist" in line["reason"])
    await stage.declare()
    token = await stage.publish("noop")
    assert (await stage.outcome(token)).kind is EventKind.SUCCEEDED


async def test_an_outcome_waits_for_the_inbox(empty_stage: Stage) -> None:
    stage = empty_stage
    await stage.declare()
    await stage.channel.delete_queue(INBOX_QUEUE)
    worker = await stage.ready_worker()
    token = await stage.publish("noop")
    await worker.logged("outcome.unroutable")
    await stage.declare()
    await stage.read_inbox()
    assert (await stage.outcome(token)).kind is EventKind.SUCCEEDED
    worker.terminate()
    assert await worker.ended() == 0
    assert await stage.ready() == 0


async def test_a_repeated_message_is_answered_without_running(stage: Stage) -> None:
    await stage.ready_worker()
    gate = stage.gate()
    payload = {"runs": str(gate.runs)}
    token = await stage.publish("echo", payload)
    await stage.outcome(token)
    stage.events.clear()
    await stage.publish("echo", payload, token=token)
    assert (await stage.outcome(token)).kind is EventKind.SUCCEEDED
    assert len(gate.pids) == 1


async def test_the_probes_over_http(empty_stage: Stage, unused_tcp_port: int) -> None:
    stage = empty_stage
    worker = await stage.start_worker(TASKQUEUE_HEALTH_PORT=str(unused_tcp_port))
    await worker.logged("consumer.waiting")
    assert (await probe(unused_tcp_port, "/healthz"))[0] == 200
    assert await probe(unused_tcp_port, "/readyz") == (
        503,
        "no consumer is registered with the broker\n",
    )
    await stage.declare()
    await worker.logged("consumer.ready")
    assert await probe(unused_tcp_port, "/readyz") == (200, "ok\n")


async def probe(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split(" ")[1]), body


async def test_a_module_that_is_not_there_ends_it_with_one(stage: Stage) -> None:
    worker = await WorkerProcess.start(
        stage.worker_parameters, slots=1, environment={}, arguments=["nowhere"]
    )
    assert await worker.ended() == 1
    assert "there is no module 'nowhere'" in worker.log[0]["text"]
