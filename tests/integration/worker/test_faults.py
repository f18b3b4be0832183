"""A real worker whose broker, connection or life is taken away, and its orderly end."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.contract.names import CUT_HEADER, ERROR_HEADER, INBOX_QUEUE, WORK_EXCHANGE
from taskqueue.contract.outcome import EventKind
from tests.faults.raw_messages import UNREADABLE, publish_raw
from tests.integration.worker.harness import Harness
from tests.integration.worker.process import PATIENCE, WorkerProcess

pytestmark = pytest.mark.broker


async def test_a_killed_worker_is_tried_again_until_the_limit_and_then_called_lost(
    harness: Harness,
) -> None:
    gate = harness.gate()
    older = {"max_deliveries": 2, "checkpointed": None}  # an operator that does not count
    token = await harness.publish("hold", gate.payload, **older)
    for times in (1, 2):
        worker = await harness.start_worker()
        await gate.wait_until_started(times)
        await worker.kill()
    await harness.start_worker()
    event = await harness.outcome(token)
    assert event.error is not None
    assert (event.error.type, event.error.retryable) == ("WorkerLost", True)
    assert "2 times" in event.error.message
    assert len(set(gate.pids)) == 2, "not run a third time"
    await harness.until_ready(0)


async def test_sigterm_lets_the_running_end_and_gives_back_the_rest(harness: Harness) -> None:
    worker, gate = await harness.ready_worker(slots=1, TASKQUEUE_LOG_LEVEL="DEBUG"), harness.gate()
    for token in [await harness.publish("noop") for _ in range(120)]:
        await harness.outcome(token)  # short runs: deliveries are now fetched ahead
    await worker.logged("prefetch.changed")
    await worker.logged("consumer.added", times=2)
    running = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    ahead = [await harness.publish("noop") for _ in range(3)]
    await harness.until_ready(0)
    worker.terminate()
    for token in ahead:
        assert (await harness.outcome(token)).kind is EventKind.RELEASED
    await worker.logged("worker.stop_started")
    late = await harness.publish("noop")
    gate.open()
    assert (await harness.outcome(running)).kind is EventKind.SUCCEEDED
    assert await worker.ended() == 0
    # What came after the signal was left alone, or released if it was on its way.
    if harness.reported(late):
        assert harness.reported(late) == [EventKind.RELEASED]
    else:
        await harness.until_ready(1)


async def test_full_worker_leaves_work_to_others_after_short_runs(harness: Harness) -> None:
    worker, gate = await harness.ready_worker(slots=1, TASKQUEUE_LOG_LEVEL="DEBUG"), harness.gate()
    for token in [await harness.publish("noop") for _ in range(120)]:
        await harness.outcome(token)
    await worker.logged("consumer.added", times=2)
    running = await harness.publish("hold", gate.payload)
    await harness.outcome(running, EventKind.STARTED)
    await asyncio.sleep(1)
    token = await harness.publish("noop")
    await asyncio.sleep(1)
    assert harness.reported(token) == [], "it would be released, published again, and so on"
    gate.open()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED


@pytest.mark.parametrize("handler", ["hold", "thread_hold", "async_hold"])
async def test_after_the_grace_period_the_running_is_released(
    harness: Harness, handler: str
) -> None:
    gate = harness.gate()
    worker = await harness.ready_worker(TASKQUEUE_GRACE_SECONDS="0.2")
    token = await harness.publish(handler, gate.payload)
    await gate.wait_until_started()
    worker.terminate()
    assert (await harness.outcome(token)).kind is EventKind.RELEASED
    assert await worker.ended() == 0, "a handler that never returns does not hold it up"
    assert await harness.ready() == 0, "released by an event, not by a requeue"


async def test_a_second_signal_ends_it_at_once(harness: Harness) -> None:
    gate = harness.gate()
    worker = await harness.ready_worker()
    await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    worker.terminate()
    await worker.logged("worker.stop_started")
    worker.terminate()
    assert await worker.ended() == 128 + 15
    await harness.until_ready(1)


async def test_an_idle_worker_stops_at_once(harness: Harness) -> None:
    worker = await harness.ready_worker()
    worker.terminate()
    assert await worker.ended() == 0


async def test_a_closed_connection_is_made_anew_and_the_running_attempt_ends_once(
    harness: Harness,
) -> None:
    worker, gate = await harness.ready_worker(slots=2), harness.gate()
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    await harness.close_connections()
    await worker.logged("consumer.registered", times=2)
    await harness.until_ready(0)  # delivered again, to the worker that still runs it
    gate.open()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    second = await harness.publish("noop")
    assert (await harness.outcome(second)).kind is EventKind.SUCCEEDED
    assert len(gate.pids) == 1
    worker.terminate()
    assert await worker.ended() == 0
    await harness.until_ready(0)


async def test_a_worker_waits_for_its_queue(empty_harness: Harness) -> None:
    harness = empty_harness
    worker = await harness.start_worker()
    waiting = await worker.logged("consumer.lost")
    assert "taskqueue.shop.q does not exist yet" in waiting["reason"]
    await harness.declare()
    await harness.read_inbox()
    token = await harness.publish("noop")
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    # Another reason may follow: the topology is declared piece by piece. None is repeated.
    reasons = [line["reason"] for line in worker.log if line["event"] == "consumer.lost"]
    assert len(reasons) == len(set(reasons))


async def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(harness: Harness) -> None:
    worker = await harness.ready_worker()
    await harness.channel.delete_queue("taskqueue.shop.q")
    await worker.logged("consumer.lost", where=lambda line: "does not exist" in line["reason"])
    await harness.declare()
    token = await harness.publish("noop")
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED


async def test_an_outcome_waits_for_the_inbox(empty_harness: Harness) -> None:
    harness = empty_harness
    await harness.declare()
    await harness.channel.delete_queue(INBOX_QUEUE)
    worker = await harness.ready_worker()
    token = await harness.publish("noop")
    await worker.logged("outcome.returned")
    await harness.declare()
    await harness.read_inbox()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    worker.terminate()
    assert await worker.ended() == 0
    assert await harness.ready() == 0


async def test_a_repeated_message_is_answered_without_running(harness: Harness) -> None:
    await harness.ready_worker()
    gate = harness.gate()
    payload = {"runs": str(gate.runs)}
    token = await harness.publish("echo", payload)
    await harness.outcome(token)
    harness.events.clear()
    await harness.publish("echo", payload, token=token)
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    assert len(gate.pids) == 1


async def test_the_probes_over_http(empty_harness: Harness, unused_tcp_port: int) -> None:
    harness = empty_harness
    worker = await harness.start_worker(TASKQUEUE_HEALTH_PORT=str(unused_tcp_port))
    await worker.logged("consumer.lost")
    assert (await probe(unused_tcp_port, "/healthz"))[0] == 200
    assert await probe(unused_tcp_port, "/readyz") == (
        503,
        "no consumer is registered with the broker\n",
    )
    await harness.declare()
    await worker.logged("consumer.registered")
    assert await probe(unused_tcp_port, "/readyz") == (200, "ok\n")


async def probe(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split(" ")[1]), body


async def test_a_module_that_is_not_there_ends_it_with_one(harness: Harness) -> None:
    worker = await WorkerProcess.start(
        harness.worker_parameters, slots=1, environment={}, arguments=["nowhere"]
    )
    assert await worker.ended() == 1
    assert "there is no module 'nowhere'" in worker.log[0]["text"]


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_message_nobody_can_read_is_parked_and_holds_up_nothing(
    harness: Harness, name: str
) -> None:
    worker, gate = await harness.ready_worker(slots=2), harness.gate()
    running = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    publish_raw(harness.channel, WORK_EXCHANGE, "shop.q", UNREADABLE[name], b"any body")
    letter = await harness.dead_letter()
    assert letter.body == b"any body"
    assert "cannot be read" in (letter.properties.headers or {})[ERROR_HEADER]
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED
    gate.open()
    assert (await harness.outcome(running)).kind is EventKind.SUCCEEDED
    await harness.until_ready(0)
    assert [line["event"] for line in worker.log].count("consumer.registered") == 1


async def test_headers_too_large_to_be_published_again_are_cut(harness: Harness) -> None:
    await harness.ready_worker()
    large = b"\x01aS" + (130_000).to_bytes(4, "big") + b"x" * 130_000
    token = b"\x08tq-tokenS\x00\x00\x00\x01k"  # it claims to be the operator's, and is not
    publish_raw(harness.channel, WORK_EXCHANGE, "shop.q", large + token, b"no JSON")
    letter = await harness.dead_letter()
    assert letter.body == b"no JSON"
    assert (letter.properties.headers or {})[CUT_HEADER] == "a"
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED
