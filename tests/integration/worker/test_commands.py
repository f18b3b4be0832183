"""Commands by the control stream to a real worker: past, present, and over losses."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.names import CONTROL_ARGUMENTS, CONTROL_STREAM
from taskqueue.contract.outcome import EventKind
from taskqueue.model.command import CommandKind
from taskqueue.worker.command_consumer import PREFETCH, find_end
from tests.integration.worker.harness import Harness

pytestmark = pytest.mark.broker

ANSWERS = pytest.mark.parametrize(
    ("kind", "answer"),
    [(CommandKind.CANCEL, EventKind.CANCELLED), (CommandKind.RELEASE, EventKind.RELEASED)],
)


def cancel(token: str) -> WorkerCommand:
    return WorkerCommand(CommandKind.CANCEL, token=token, uid="u")


def drain() -> WorkerCommand:
    return WorkerCommand(CommandKind.DRAIN, namespace="shop", pod="pod-1")


def past_commands(count: int, *, uid: str = "u") -> list[WorkerCommand]:
    return [
        WorkerCommand(CommandKind.CANCEL, token=f"k1.{uuid.uuid4().hex}", uid=uid)
        for _ in range(count)
    ]


@ANSWERS
@pytest.mark.parametrize("handler", ["async_hold", "polite"])
async def test_a_running_attempt_is_stopped(
    harness: Harness, handler: str, kind: CommandKind, answer: EventKind
) -> None:
    worker, gate = await harness.ready_worker(slots=1), harness.gate()
    token = await harness.publish(handler, gate.payload)
    await gate.wait_until_started()
    await harness.send_commands(WorkerCommand(kind, token=token, uid="u"))
    assert (await harness.outcome(token)).kind is answer
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED
    await harness.publish("noop", token=token)
    await worker.logged("outcome.repeated")
    await harness.until_ready(0)
    assert len(gate.pids) == (2 if handler == "polite" else 1)
    assert set(harness.reported(token)) <= {EventKind.STARTED, answer}


@ANSWERS
async def test_a_command_sent_while_the_worker_is_down_holds(
    harness: Harness, kind: CommandKind, answer: EventKind
) -> None:
    gate = harness.gate()
    token = await harness.publish("hold", gate.payload)
    await harness.send_commands(WorkerCommand(kind, token=token, uid="u"))
    for _ in range(2):
        worker = await harness.start_worker()
        assert (await harness.outcome(token)).kind is answer
        await harness.until_ready(0)
        worker.terminate()
        assert await worker.ended() == 0
        harness.events.clear()
        await harness.publish("hold", gate.payload, token=token)
    assert gate.pids == []


async def test_ten_thousand_past_commands_are_known_before_the_first_work(harness: Harness) -> None:
    gate = harness.gate()
    token = await harness.publish("hold", gate.payload)
    await harness.send_commands(*past_commands(9_999), cancel(token))
    worker = await harness.start_worker()
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED
    await worker.logged("consumer.registered")
    events = [line["event"] for line in worker.log]
    assert events.index("command_consumer.registered") < events.index("consumer.registered")
    assert (await worker.logged("command_consumer.registered"))["commands"] == 10_001
    assert gate.pids == []


async def test_the_end_of_a_stream_is_found_while_commands_keep_coming(harness: Harness) -> None:
    await harness.send_commands(*past_commands(5))
    finished = asyncio.Event()

    async def keep_sending() -> None:
        while not finished.is_set():
            await harness.send_commands(*past_commands(1))

    sender = asyncio.create_task(keep_sending())
    try:
        for _ in range(100):
            channel = await harness.connection.channel()
            await channel.set_prefetch(PREFETCH)
            assert await find_end(channel) is not None, "it is not empty"
            await channel.close()
    finally:
        finished.set()
        await sender


async def test_after_a_reconnect_it_continues_where_it_was(harness: Harness) -> None:
    worker, gate = await harness.ready_worker(slots=2), harness.gate()
    await harness.send_commands(*past_commands(3))
    first = await harness.publish("async_hold", gate.payload)
    second = await harness.publish("async_hold", gate.payload)
    await gate.wait_until_started(2)
    await harness.send_commands(cancel(first))
    assert (await harness.outcome(first)).kind is EventKind.CANCELLED
    await harness.close_connections()
    await harness.send_commands(cancel(second))
    assert (await harness.outcome(second)).kind is EventKind.CANCELLED
    again = await worker.logged("command_consumer.registered", times=2)
    assert again["commands"] <= 1, "what it has seen does not come again"
    third = await harness.publish("async_hold", gate.payload)
    await gate.wait_until_started(3)
    await harness.send_commands(cancel(third))
    assert (await harness.outcome(third)).kind is EventKind.CANCELLED


async def test_commands_dropped_by_retention_do_not_block_the_worker(harness: Harness) -> None:
    await harness.channel.delete_queue(CONTROL_STREAM)
    # Room for some segments: of one that is full by itself nothing may be left.
    small = {**CONTROL_ARGUMENTS, "x-max-length-bytes": 1_200_000}
    await harness.channel.declare_queue(CONTROL_STREAM, arguments=small)
    worker = await harness.ready_worker()
    await harness.send_commands(*past_commands(10))
    worker.freeze()
    await harness.close_connections()
    await harness.send_commands(*past_commands(4_000, uid="u" * 1000))
    worker.thaw()
    assert 0 < (await worker.logged("command_consumer.registered", times=2))["commands"] < 3_900
    gate = harness.gate()
    token = await harness.publish("hold", gate.payload)
    await harness.send_commands(cancel(token))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED


async def test_a_worker_waits_for_the_stream_and_logs_it_once(harness: Harness) -> None:
    await harness.channel.delete_queue(CONTROL_STREAM)
    token = await harness.publish("noop")
    worker = await harness.start_worker()
    waiting = await worker.logged("command_consumer.lost")
    assert "taskqueue.control does not exist yet: start the operator" in waiting["reason"]
    assert harness.reported(token) == []
    await harness.declare()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    assert [line["event"] for line in worker.log].count("command_consumer.lost") == 1


async def test_a_stream_declared_again_is_read_from_its_beginning(harness: Harness) -> None:
    worker, gate = await harness.ready_worker(), harness.gate()
    await harness.send_commands(*past_commands(50))
    token = await harness.publish("async_hold", gate.payload)
    await gate.wait_until_started()
    await harness.channel.delete_queue(CONTROL_STREAM)
    await worker.logged("command_consumer.lost")
    await harness.declare()
    await harness.send_commands(cancel(token))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED


async def test_a_worker_that_may_not_read_commands_logs_what_to_grant(harness: Harness) -> None:
    user, grant = harness.worker_parameters.username, harness.vhost.management.permit
    write = r"^taskqueue\.(outcomes|dead|heartbeats)$"
    grant(harness.vhost.name, user, configure="^$", write=write, read=r"^taskqueue\.shop\.q$")
    worker = await harness.start_worker()
    waiting = await worker.logged("command_consumer.lost")
    assert f"user '{user}' may not read taskqueue.control: grant it" in waiting["reason"]
    pattern = r"^taskqueue\.(shop\.q|control)$"
    assert pattern in waiting["reason"]
    grant(harness.vhost.name, user, configure="^$", write=write, read=pattern)
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED


async def test_an_invalid_command_is_skipped(harness: Harness) -> None:
    worker, gate = await harness.ready_worker(), harness.gate()
    await harness.publisher.publish_and_wait("", CONTROL_STREAM, b"dance!", harness.properties())
    assert "JSON" in (await worker.logged("command.invalid"))["reason"]
    token = await harness.publish("async_hold", gate.payload)
    await gate.wait_until_started()
    await harness.send_commands(cancel(token))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED


async def test_a_commanded_drain_lets_the_running_end_and_takes_nothing_more(
    harness: Harness,
) -> None:
    worker, gate = await harness.ready_worker(slots=1, TASKQUEUE_GRACE_SECONDS="0"), harness.gate()
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    others = [("shop", "pod-2"), ("other", "pod-1")]
    await harness.send_commands(
        *(
            WorkerCommand(CommandKind.DRAIN, namespace=namespace, pod=pod)
            for namespace, pod in others
        ),
        drain(),
    )
    await worker.logged("worker.drain_started")
    await harness.publish("noop")
    gate.open()
    assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    await worker.logged("worker.drained")
    await harness.until_ready(1)
    worker.terminate()
    assert await worker.ended() == 0
    assert await harness.ready() == 1, "it took no more"


async def test_a_command_to_drain_is_for_the_process_that_is_there(harness: Harness) -> None:
    first = await harness.ready_worker(TASKQUEUE_DRAINED_SECONDS="0")
    await harness.send_commands(drain())
    assert await first.ended() == 0, "it waits for no signal"
    again = await harness.ready_worker()
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED
    await harness.close_connections()
    await again.logged("command_consumer.registered", times=2)
    assert (await harness.outcome(await harness.publish("noop"))).kind is EventKind.SUCCEEDED
    again.freeze()
    await harness.close_connections()
    await harness.send_commands(drain())
    again.thaw()
    await again.logged("worker.drained")  # given while it was away, it counts
    await harness.close_connections()
    await again.logged("command_consumer.registered", times=4)
    again.terminate()
    assert await again.ended() == 0
    assert len([line for line in again.log if line["event"] == "worker.drain_started"]) == 1


async def test_a_draining_worker_still_obeys_and_a_signal_starts_its_grace(
    harness: Harness,
) -> None:
    worker = await harness.ready_worker(slots=2, TASKQUEUE_GRACE_SECONDS="0")
    first, second = harness.gate("first"), harness.gate("second")
    cancelled = await harness.publish("async_hold", first.payload)
    released = await harness.publish("async_hold", second.payload)
    await first.wait_until_started()
    await second.wait_until_started()
    await harness.send_commands(drain())
    await worker.logged("worker.drain_started")
    await harness.send_commands(cancel(cancelled))
    assert (await harness.outcome(cancelled)).kind is EventKind.CANCELLED
    worker.terminate()
    assert (await harness.outcome(released)).kind is EventKind.RELEASED
    assert await worker.ended() == 0
