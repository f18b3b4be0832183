"""Attempts that no worker will report any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.heartbeat import Heartbeat, RunningAttempt, encode
from taskqueue.contract.names import HEARTBEATS_EXCHANGE
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.published_attempts import MIN_WINDOW, window_size
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.command import CommandKind
from taskqueue.model.task import Phase
from taskqueue.model.worker import WorkerState
from tests.unit.controller.fakes import TOKENS, TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime


async def test_an_unreported_attempt_fails_after_timeout_and_grace_period() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    entry = await harness.published()
    for _ in range(31):
        harness.dispatcher.on_ready_count(0, reporting=True)
        assert entry.stage is TaskStage.PUBLISHED
        await asyncio.sleep(1)
    harness.dispatcher.on_ready_count(0, reporting=True)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Retrying", "Timeout")
    assert (write.status["epoch"], write.urgent) == (1, True)
    assert not harness.publisher.commands
    write.succeed()
    (command,) = harness.publisher.commands
    assert (command.kind, command.token) == (CommandKind.CANCEL, TOKENS.sign("uid-t", 1, 0))
    harness.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.RETRYING


@pytest.mark.parametrize("now", [1, 5000])
async def test_the_time_limit_counts_that_was_published_with_the_attempt(now: int) -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    await harness.published()
    policy = replace(harness.config.policy, attempt_timeout_seconds=now)
    harness.dispatcher.config = replace(harness.config, policy=policy)
    harness.dispatcher.on_ready_count(0, reporting=True)
    assert not await is_failed_after(harness, 29.9)
    assert await is_failed_after(harness, 0.3)
    assert "within 20 s" in harness.writer.writes[-1].status["history"][-1]["message"]


async def after_a_restart(harness: TaskHarness) -> TrackedTask:
    """Return a Task that a former leader has published, with a time limit that nobody knows."""
    harness.synced = False
    entry = harness.add("t")
    harness.synced = True
    harness.open()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    harness.dispatcher.on_ready_count(0, reporting=True)
    return entry


def heartbeat(harness: TaskHarness, token: str, epoch: int = 0) -> None:
    running = (RunningAttempt("uid-t", token, attempt=1, epoch=epoch),)
    said = Heartbeat(
        namespace="shop",
        queue="q",
        pod="pod-1",
        node="",
        cpus=1.0,
        slots=1,
        handlers=(),
        running=running,
        state=WorkerState.READY,
    )
    harness.message(
        encode(said), exchange=HEARTBEATS_EXCHANGE, routing_key="shop.q.worker.heartbeat"
    )


async def test_attempt_of_a_former_leader_runs_as_long_as_its_worker_says_so() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)  # it was more when that published it
    entry = await after_a_restart(harness)
    token = harness.token(entry)
    for _ in range(20):
        heartbeat(harness, token)
        await is_failed_after(harness, 8)
        assert not entry.status.history
    await is_failed_after(harness, 26)
    assert not entry.status.history
    await is_failed_after(harness, 2)
    assert entry.status.phase is Phase.RETRYING
    assert "within 178 s" in entry.status.history[-1].message


async def test_attempt_of_a_former_leader_fails_when_no_worker_reports_it() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    await after_a_restart(harness)
    assert not await is_failed_after(harness, 29)
    assert await is_failed_after(harness, 2)


@pytest.mark.parametrize("now", [1, 20])
async def test_attempt_of_a_former_leader_has_the_time_it_was_published_with(now: int) -> None:
    """Its worker sends no heartbeats, and the limit was lowered since."""
    former = TaskHarness(attempt_timeout_seconds=60)
    entry = await former.published()
    former.event(entry, EventKind.STARTED)
    await asyncio.sleep(2)
    status = former.writer.writes[-1].status
    assert (status["phase"], status["attemptTimeoutSeconds"]) == ("Running", 60)
    harness = TaskHarness(attempt_timeout_seconds=now)
    harness.synced = False
    raw = raw_task("t")
    raw["status"] = status
    harness.show(raw)
    harness.synced = True
    harness.open()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    harness.dispatcher.on_ready_count(0, reporting=True)
    assert not await is_failed_after(harness, 69)
    assert await is_failed_after(harness, 2)


async def test_next_attempt_is_judged_by_its_own_time_limit() -> None:
    harness = TaskHarness(attempt_timeout_seconds=5)
    entry = await after_a_restart(harness)
    heartbeat(harness, harness.token(entry))
    harness.failed(entry)
    await asyncio.sleep(5.1)
    harness.publisher.settle(Settled.CONFIRMED)
    harness.dispatcher.on_ready_count(0, reporting=True)
    await is_failed_after(harness, 14.9)
    assert len(entry.status.history) == 1
    await is_failed_after(harness, 0.2)
    assert len(entry.status.history) == 2


async def test_own_attempt_fails_in_time_though_its_worker_says_that_it_runs() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    entry = await harness.published()
    harness.dispatcher.on_ready_count(0, reporting=True)
    heartbeat(harness, harness.token(entry))
    await asyncio.sleep(25)
    heartbeat(harness, harness.token(entry))
    await is_failed_after(harness, 6)
    assert entry.status.phase is Phase.RETRYING


async def test_key_is_held_as_long_as_a_worker_says_that_it_runs_the_stopped_attempt() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    entry = harness.add("t", concurrencyKey="k")
    harness.add("next", concurrencyKey="k", created=1.0)
    harness.open()
    await turn()
    harness.writer.writes.pop().succeed()
    harness.publisher.settle(Settled.CONFIRMED)
    token = harness.token(entry)
    harness.add("t", concurrencyKey="k", cancel=True)
    for _ in range(10):
        await asyncio.sleep(10)
        heartbeat(harness, token)
        assert harness.dispatcher.keys.holds
        if harness.writer.writes:
            harness.writer.writes.pop().succeed(generation=2)
    await asyncio.sleep(34)
    assert harness.dispatcher.keys.holds
    await asyncio.sleep(2)
    assert not harness.dispatcher.keys.holds


@pytest.mark.parametrize("step", [-400.0, 400.0])
async def test_step_of_the_wall_clock_makes_no_attempt_late(step: float) -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    entry = await harness.published()
    harness.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(5)
    harness.step = step
    harness.event(entry, EventKind.STARTED)
    harness.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(2)
    harness.writer.writes.pop()
    harness.step = 0.0
    assert not await is_failed_after(harness, 27)
    assert await is_failed_after(harness, 1)


async def test_an_unreported_last_attempt_ends_the_task() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20, max_attempts=1)
    await harness.published()
    harness.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(31)
    harness.dispatcher.on_ready_count(0, reporting=True)
    assert harness.writer.phases == ["Failed"]
    assert len(harness.publisher.commands) == 1


async def is_failed_after(harness: TaskHarness, seconds: float) -> bool:
    await asyncio.sleep(seconds)
    harness.dispatcher.on_ready_count(0, reporting=True)
    return bool(harness.writer.phases)


def is_delivered(harness: TaskHarness, entry: TrackedTask) -> bool:
    return harness.dispatcher.attempts._published[entry.uid] is not None


async def test_only_what_no_longer_waits_in_the_broker_is_with_a_worker() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    entries = [harness.add(name) for name in "abc"]
    harness.open()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    harness.dispatcher.on_ready_count(2, reporting=True)
    assert [is_delivered(harness, entry) for entry in entries] == [True, False, False]
    harness.dispatcher.on_ready_count(5, reporting=True)  # it came back, or others publish too
    assert not any(is_delivered(harness, entry) for entry in entries)


async def test_an_unconfirmed_message_counts_as_undelivered() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    harness.add("t")
    harness.open()
    await turn()
    harness.dispatcher.on_ready_count(0, reporting=True)
    assert not await is_failed_after(harness, 100)


async def test_the_timeout_counts_from_a_reported_start() -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    entry = await harness.published()
    harness.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(25)
    harness.event(entry, EventKind.STARTED)
    await asyncio.sleep(2)
    harness.writer.writes.pop()
    assert not await is_failed_after(harness, 27)
    assert await is_failed_after(harness, 1)


@pytest.mark.parametrize("how", ["a new connection", "a broker that blocks"])
async def test_timeouts_restart_after_workers_could_not_report(how: str) -> None:
    harness = TaskHarness(attempt_timeout_seconds=20)
    await harness.published()
    harness.dispatcher.on_ready_count(0, reporting=True)
    await asyncio.sleep(25)
    if how == "a new connection":
        harness.dispatcher.close()
        harness.open()
    else:
        harness.dispatcher.on_ready_count(0, reporting=False)
    harness.dispatcher.on_ready_count(0, reporting=True)
    assert not await is_failed_after(harness, 29)
    assert await is_failed_after(harness, 2)


def test_the_window_is_at_least_the_minimum_and_at_most_max_published() -> None:
    assert window_size(max_published=1000, slots=0, finished_in_5_seconds=0) == MIN_WINDOW
    assert window_size(max_published=10, slots=50, finished_in_5_seconds=99) == 10
    assert window_size(max_published=1000, slots=50, finished_in_5_seconds=0) == 100
    assert window_size(max_published=1000, slots=5, finished_in_5_seconds=700) == 700
