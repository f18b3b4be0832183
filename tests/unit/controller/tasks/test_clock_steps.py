"""A step of the wall clock brings nothing forward that has begun to wait, nor puts it off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.task import RetryBackoff
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, KEY, TaskHarness
from tests.unit.controller.virtual_time import until_time

pytestmark = pytest.mark.looptime

STEPS = (-400.0, -3.0, 3.0, 400.0)
RETRY_AFTER_30 = RetryBackoff(30.0, 1.0, 30.0, 0.0)


async def scheduled(harness: TaskHarness) -> TrackedTask:
    return harness.add("t", startAfter=to_rfc3339(EPOCH + 30))


async def retrying(harness: TaskHarness) -> TrackedTask:
    entry = await harness.published()
    harness.failed(entry)
    return entry


async def retrying_after_a_step(harness: TaskHarness) -> TrackedTask:
    harness.step = -1000.0
    return await retrying(harness)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("waiting", [scheduled, retrying, retrying_after_a_step])
async def test_task_waits_as_long_as_it_should(
    waiting: Callable[[TaskHarness], Awaitable[TrackedTask]], step: float
) -> None:
    harness = TaskHarness(backoff=RETRY_AFTER_30)
    entry = await waiting(harness)
    assert entry.stage is TaskStage.HELD
    await until_time(10)
    harness.step += step
    harness.tasks.on_queue_changed(KEY)
    await until_time(29.9)
    harness.tasks.on_queue_changed(KEY)
    assert entry.stage is TaskStage.HELD
    await until_time(30.1)
    assert entry.stage is not TaskStage.HELD


async def test_what_nothing_holds_does_not_wait_for_a_clock_that_was_never_set() -> None:
    harness = TaskHarness(backoff=RETRY_AFTER_30)
    entry = await retrying(harness)
    harness.step = -2 * EPOCH
    harness.tasks.on_queue_changed(KEY)
    await until_time(30.1)
    assert entry.stage is not TaskStage.HELD


async def test_task_that_was_held_for_a_moment_is_not_held_again_by_a_clock_that_is_set_back() -> (
    None
):
    harness = TaskHarness()
    entry = await harness.published(concurrencyKey="k")
    harness.event(entry, EventKind.CANCELLED)
    harness.dispatcher.close()
    await asyncio.sleep(2)
    assert entry.stage is TaskStage.WAITING
    harness.step = -400.0
    harness.tasks.on_queue_changed(KEY)
    assert entry.stage is TaskStage.WAITING


@pytest.mark.parametrize("step", STEPS)
async def test_task_ends_at_its_deadline(step: float) -> None:
    harness = TaskHarness()
    entry = await harness.published(activeDeadlineSeconds=30)
    await until_time(10)
    harness.step = step
    harness.add("t", activeDeadlineSeconds=30, priority=1)
    await until_time(29.9)
    assert entry.stage is TaskStage.PUBLISHED
    await until_time(30.1)
    assert entry.status.reason == "DeadlineExceeded"


async def test_task_whose_time_has_come_is_not_held_again() -> None:
    harness = TaskHarness()
    entry = await scheduled(harness)
    await until_time(31)
    assert entry.stage is TaskStage.WAITING
    harness.step = -400.0
    harness.tasks.on_queue_changed(KEY)
    assert entry.stage is TaskStage.WAITING


async def test_new_deadline_counts_by_the_clock_as_it_is() -> None:
    harness = TaskHarness()
    entry = harness.add("t")
    await until_time(10)
    harness.step = 400.0
    harness.add("t", activeDeadlineSeconds=500)
    await asyncio.sleep(89)
    assert entry.stage is TaskStage.WAITING
    await asyncio.sleep(2)
    assert entry.status.reason == "DeadlineExceeded"
