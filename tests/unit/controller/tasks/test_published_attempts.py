"""Attempts that no worker will report any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.published_attempts import MIN_WINDOW, window_size
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.command import CommandKind
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TOKENS, TaskHarness, turn

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
    return harness.dispatcher._published._published[entry.uid] is not None


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
