"""A real worker whose handlers' processes are killed, crash, grow, hang and do not listen."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.outcome import AttemptEvent, EventKind
from taskqueue.model.command import CommandKind
from tests.faults.relay import relay_to
from tests.integration.worker.harness import Gate, Harness
from tests.integration.worker.process import PATIENCE, WorkerProcess
from tests.unit.worker.children import alive, gone

pytestmark = pytest.mark.broker

HARD = "tests.integration.worker.hard_handlers"


async def hard_worker(harness: Harness, **how: Any) -> WorkerProcess:
    return await harness.ready_worker(arguments=[HARD], **how)


async def fork_server(worker: WorkerProcess) -> int:
    """The worker's only direct child."""
    (pid,) = below(worker.pid)
    return pid


def below(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def run(harness: Harness, handler: str = "pid", **changes: Any) -> AttemptEvent:
    return await harness.outcome(await harness.publish(handler, **changes))


def marked(gate: Gate, word: str) -> str | None:
    """What a handler wrote into a file beside its gate."""
    path = Path(f"{gate.gate}.{word}")
    return path.read_text() if path.exists() else None


def error_of(event: AttemptEvent) -> tuple[str, bool]:
    assert event.error is not None
    return event.error.type, event.error.retryable


async def test_children_that_die_are_failed_attempts_and_the_worker_goes_on(
    harness: Harness,
) -> None:
    worker = await hard_worker(harness)
    for handler, words in (
        ("segfault", "SIGSEGV"),
        ("exit_three", "exit code 3"),
        ("greedy", "the limit is 200 MiB"),
    ):
        event = await run(harness, handler)
        assert error_of(event) == ("MemoryLimit" if handler == "greedy" else "ChildDied", True)
        assert event.error is not None
        assert words in event.error.message
    gate = harness.gate()
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    os.kill(gate.pids[0], signal.SIGKILL)
    event = await harness.outcome(token)
    assert error_of(event) == ("ChildDied", True)
    assert event.error is not None
    assert "SIGKILL" in event.error.message
    assert (await run(harness)).kind is EventKind.SUCCEEDED
    assert len(gate.pids) == 1, "not delivered again: the attempt has failed"
    worker.terminate()
    assert await worker.ended() == 0
    await harness.until_ready(0)


@pytest.mark.parametrize("handler", ["hold", "deaf", "long_sum", "long_regex"])
async def test_a_time_out_stops_the_handler_and_frees_the_slot(
    harness: Harness, handler: str
) -> None:
    await hard_worker(harness, TASKQUEUE_KILL_GRACE_SECONDS="0.5")
    gate = harness.gate()
    token = await harness.publish(handler, gate.payload, timeout_seconds=1)
    await gate.wait_until_started()
    assert error_of(await harness.outcome(token)) == ("Timeout", True)
    second = await run(harness)
    assert second.kind is EventKind.SUCCEEDED, "the only slot is free again"
    gate.open()
    assert not alive(gate.pids[0])
    assert marked(gate, "mark") is None, "it did not go on"
    assert harness.reported(token) == [EventKind.STARTED, EventKind.FAILED]


@pytest.mark.parametrize("handler", ["tidy", "deaf", "long_sum"])
async def test_a_cancel_stops_the_handler(harness: Harness, handler: str) -> None:
    await hard_worker(harness, TASKQUEUE_KILL_GRACE_SECONDS="0.5")
    gate = harness.gate()
    token = await harness.publish(handler, gate.payload)
    await gate.wait_until_started()
    await harness.send_commands(WorkerCommand(CommandKind.CANCEL, token=token, uid="u"))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED
    assert (await run(harness)).kind is EventKind.SUCCEEDED
    gate.open()
    assert not alive(gate.pids[0])
    assert marked(gate, "mark") is None
    if handler == "tidy":
        assert marked(gate, "tidy") == "True"


async def test_a_handler_that_holds_the_interpreter_does_not_cost_the_connection(
    harness: Harness,
) -> None:
    worker = await hard_worker(harness, slots=2)
    gate = harness.gate()
    token = await harness.publish("long_sum", gate.payload, timeout_seconds=8)
    await gate.wait_until_started()
    assert (await run(harness)).kind is EventKind.SUCCEEDED
    assert error_of(await harness.outcome(token)) == ("Timeout", True)
    assert [line["event"] for line in worker.log].count("consumer.registered") == 1
    assert harness.reported(token) == [EventKind.STARTED, EventKind.FAILED]


@pytest.mark.parametrize("handler", ["hold", "long_sum"])
async def test_a_keyed_handler_is_killed_in_time_and_the_worker_lives(
    harness: Harness, handler: str
) -> None:
    async with relay_to(harness.worker_parameters) as (relay, broker):
        assert isinstance(broker, BrokerParameters)
        worker = await hard_worker(harness, slots=2, broker=broker)
        keyed, plain = harness.gate("keyed"), harness.gate("plain")
        token = await harness.publish(handler, keyed.payload, fence=7)
        other = await harness.publish("hold", plain.payload)
        await keyed.wait_until_started()
        await plain.wait_until_started()
        relay.cut()
        await worker.logged("task.ended_late")
        await keyed.wait_until_started(2)
        assert not alive(keyed.pids[0]), "ended before the next run started"
        plain.open()
        assert (await harness.outcome(other)).kind is EventKind.SUCCEEDED
        assert len(plain.pids) == 1
        await harness.send_commands(WorkerCommand(CommandKind.CANCEL, token=token, uid="u"))
        assert (await harness.outcome(token)).kind is EventKind.CANCELLED
        assert not alive(keyed.pids[1]), "reported when it has ended"


async def test_what_a_handler_has_started_dies_with_it(harness: Harness) -> None:
    worker = await hard_worker(harness)
    gate = harness.gate()
    token = await harness.publish("family", gate.payload)
    await gate.wait_until_started(4)
    await harness.send_commands(WorkerCommand(CommandKind.CANCEL, token=token, uid="u"))
    await harness.outcome(token)
    for pid in set(gate.pids):
        await gone(pid)
    gate = harness.gate("again")
    await harness.publish("family", gate.payload)
    await gate.wait_until_started(4)
    await worker.kill()
    for pid in set(gate.pids):
        await gone(pid)
    await harness.until_ready(1)  # the broker has it again


async def test_a_fork_server_that_dies_is_replaced_and_no_task_is_lost(harness: Harness) -> None:
    worker = await hard_worker(harness)
    gate = harness.gate()
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    os.kill(await fork_server(worker), signal.SIGKILL)
    await worker.logged("forkserver.died")
    await worker.logged("task.lost")
    given_back = await harness.outcome(token, EventKind.RELEASED)
    assert given_back.deliveries == 1
    await harness.publish("hold", gate.payload, token=token)  # as the operator does
    await gate.wait_until_started(2)
    assert not alive(gate.pids[0])
    gate.open()
    event = await harness.outcome(token, EventKind.SUCCEEDED)
    assert event.attempt == 1, "no attempt was spent"
    assert await fork_server(worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_whole_group_lets_the_running_finish(
    harness: Harness, number: signal.Signals
) -> None:
    worker = await hard_worker(harness)
    gate = harness.gate()
    token = await harness.publish("hold", gate.payload)
    await gate.wait_until_started()
    server = await fork_server(worker)
    os.killpg(worker.group, number)  # a terminal
    os.kill(server, number)  # and whoever signals all there is
    os.kill(gate.pids[0], number)
    await worker.logged("worker.stop_started")
    gate.open()
    event = await harness.outcome(token)
    assert (event.kind, event.result) == (EventKind.SUCCEEDED, {"value": "held"})
    assert await worker.ended() == 0
    await gone(server)


@pytest.mark.parametrize("handler", ["tidy", "deaf"])
async def test_at_the_end_of_the_grace_period_a_keyed_handler_is_stopped_and_released(
    harness: Harness, handler: str
) -> None:
    worker = await hard_worker(harness, TASKQUEUE_GRACE_SECONDS="0.2")
    gate = harness.gate()
    token = await harness.publish(handler, gate.payload, fence=7)
    await gate.wait_until_started()
    worker.terminate()
    assert (await harness.outcome(token)).kind is EventKind.RELEASED
    assert await worker.ended() == 0
    assert not alive(gate.pids[0])
    assert await harness.ready() == 0


async def test_the_end_of_the_worker_lets_handlers_clean_up(harness: Harness) -> None:
    worker = await hard_worker(harness, TASKQUEUE_GRACE_SECONDS="0.2")
    gate = harness.gate()
    token = await harness.publish("tidy", gate.payload)
    await gate.wait_until_started()
    worker.terminate()
    assert (await harness.outcome(token)).kind is EventKind.RELEASED
    assert await worker.ended() == 0
    assert marked(gate, "tidy") == "True"


async def test_children_are_replaced_after_so_many_attempts_and_nothing_leaks(
    harness: Harness,
) -> None:
    worker = await hard_worker(harness, TASKQUEUE_CHILD_MAX_TASKS="7")
    server = await fork_server(worker)
    pids = []
    fds: list[tuple[int, int]] = []
    for number in range(200):
        event = await run(harness)
        assert event.result is not None
        pids.append(event.result["value"])
        if number in (24, 199):  # both times the child has run four
            for pid in pids[:-1]:
                if pid != pids[-1]:
                    await gone(pid)
            fds.append((open_files(worker.pid), open_files(server)))
    assert {pids.count(pid) for pid in set(pids[:196])} == {7}
    assert below(server) == [pids[-1]]
    assert fds[0] == fds[1]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_a_task_outlives_many_heartbeats_of_its_connection(harness: Harness) -> None:
    worker = await harness.ready_worker(
        arguments=[HARD, "tests.integration.worker.quick_heartbeat"]
    )
    gate = harness.gate()
    token = await harness.publish("long_sum", gate.payload, timeout_seconds=6)
    assert error_of(await harness.outcome(token)) == ("Timeout", True)
    assert [line["event"] for line in worker.log].count("consumer.registered") == 1
    assert await harness.heartbeats() == {1}
    assert len(gate.pids) == 1


async def test_what_handlers_say_is_in_the_workers_log(harness: Harness) -> None:
    worker = await hard_worker(harness)
    await run(harness, "speak", task="loud")
    printed = await worker.logged("handler.output")
    assert (printed["text"], printed["task"], printed["handler"]) == (
        "a printed line",
        "loud",
        "speak",
    )
    logged = await worker.logged("a logged line")
    assert (logged["task"], logged["attempt"]) == ("shop/loud", 1)
    await run(harness, "segfault", task="crash")
    crash = await worker.logged(
        "handler.output",
        where=lambda line: "SIGSEGV" in line["text"] or "Segmentation" in line["text"],
    )
    assert crash["task"] == "crash"


async def test_plain_text_stays_plain(harness: Harness) -> None:
    worker = await hard_worker_in_text(harness)
    await run(harness, "speak")
    async with asyncio.timeout(PATIENCE):
        while not any("a logged line" in line.get("text", "") for line in worker.log):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (line,) = [line["text"] for line in worker.log if "a logged line" in line.get("text", "")]
    assert re.match(r"\d\d:\d\d:\d\d INFO +a logged line task=shop/", line)


async def hard_worker_in_text(harness: Harness) -> WorkerProcess:
    worker = await harness.start_worker(arguments=[HARD], TASKQUEUE_LOG_FORMAT="text")
    async with asyncio.timeout(PATIENCE):
        while not any("consumer.registered" in line.get("text", "") for line in worker.log):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return worker
