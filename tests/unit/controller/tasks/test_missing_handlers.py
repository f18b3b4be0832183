"""Tasks whose handler no worker knows: tried together, after growing pauses, for one worker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.tasks.missing_handlers import MissingHandler, next_retry
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from tests.unit.controller.fakes import TaskHarness, turn

UNKNOWN = EventError(
    type="UnknownHandler", message="no handler is called 'resize' here", reserved=True
)


def test_the_pauses_grow_and_the_tasks_of_one_try_share_them() -> None:
    known, at, pauses = None, 100.0, []
    for _ in range(9):
        known = next_retry(known, now=at, random=0.5)
        assert next_retry(known, now=at + 1, random=0.9) is known
        pauses.append(known.retry_at - at)
        at = known.retry_at
    assert pauses == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300, 300])


def test_the_jitter_is_small() -> None:
    pauses = [next_retry(None, now=0.0, random=one).retry_at for one in (0.0, 0.999)]
    assert pauses == pytest.approx([4.5, 5.5], abs=0.01)


async def unknown(harness: TaskHarness, count: int) -> list[TrackedTask]:
    """Return Tasks that a worker did not know the handler of."""
    entries = [harness.add(f"t{number}") for number in range(count)]
    harness.open()
    await turn()
    for entry in entries:
        harness.event(entry, EventKind.FAILED, error=UNKNOWN)
    return entries


def stages(entries: list[TrackedTask]) -> set[TaskStage]:
    return {entry.stage for entry in entries}


async def test_all_tasks_of_a_handler_are_tried_at_once_and_ask_for_one_worker() -> None:
    harness = TaskHarness()
    entries = await unknown(harness, 60)
    dispatcher = harness.dispatcher
    assert stages(entries) == {TaskStage.HELD}
    assert (dispatcher.waiting + dispatcher.published, dispatcher.excess) == (0, 0)
    await asyncio.sleep(6)
    assert stages(entries) == {TaskStage.PUBLISHED}
    assert dispatcher.published - dispatcher.excess == 1
    new = harness.add("new")
    await turn()
    assert new.stage is TaskStage.PUBLISHED
    assert dispatcher.published - dispatcher.excess == 1, "nor does a new one ask for another"
    for entry in entries:
        harness.event(entry, EventKind.FAILED, error=UNKNOWN)
    assert stages(entries) == {TaskStage.HELD}
    assert (dispatcher.published, dispatcher.excess) == (1, 0)
    await asyncio.sleep(8)
    assert stages(entries) == {TaskStage.HELD}, "the second pause is longer"


async def test_a_worker_that_registers_the_handler_ends_the_wait() -> None:
    harness = TaskHarness()
    entries = await unknown(harness, 300)
    harness.dispatcher.on_handlers_registered(["other"])
    assert stages(entries) == {TaskStage.HELD}
    harness.dispatcher.on_handlers_registered(["other", "resize"])
    await turn()
    await asyncio.sleep(0.1)
    assert stages(entries) == {TaskStage.PUBLISHED, TaskStage.WAITING}, "as far as the window goes"
    assert harness.dispatcher.excess == 0, "they are work like any other now"
    assert not harness.dispatcher.missing.handlers


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        (EventKind.SUCCEEDED, True),
        (EventKind.STARTED, True),
        (EventKind.RELEASED, False),
        (EventKind.CANCELLED, False),
    ],
)
async def test_a_worker_that_runs_one_of_them_ends_the_wait_of_all(
    kind: EventKind, ends: bool
) -> None:
    harness = TaskHarness()
    entries = await unknown(harness, 3)
    runs = harness.add("runs")
    await turn()
    harness.event(runs, kind)
    await turn()
    await asyncio.sleep(0.1)
    assert stages(entries) == {TaskStage.PUBLISHED if ends else TaskStage.HELD}


async def test_a_worker_that_registers_the_handler_ends_no_other_pause() -> None:
    harness = TaskHarness()
    (entry, other) = await unknown(harness, 2)
    await asyncio.sleep(6)
    harness.event(entry, EventKind.CANCELLED)  # by a command that nobody knows any more
    harness.dispatcher.on_handlers_registered(["resize"])
    await turn()
    assert (entry.stage, other.stage) == (TaskStage.HELD, TaskStage.PUBLISHED)


async def test_a_changed_taskqueue_ends_the_wait_and_the_same_one_does_not() -> None:
    harness = TaskHarness()
    entries = await unknown(harness, 2)
    harness.dispatcher.config = harness.config
    await turn()
    assert stages(entries) == {TaskStage.HELD}
    harness.dispatcher.config = replace(harness.config, generation=2)
    await turn()
    assert stages(entries) == {TaskStage.PUBLISHED}


async def test_a_handler_that_no_task_waits_for_is_not_missing() -> None:
    harness = TaskHarness()
    first, second = await unknown(harness, 2)
    missing = harness.dispatcher.missing
    assert (len(missing.handlers), missing.task_count, missing.first(5)) == (1, 2, ("resize",))
    harness.add("t0", cancel=True)
    assert first.stage is TaskStage.FINISHED
    assert missing.task_count == 1
    await harness.delete(second)
    await asyncio.sleep(1)
    assert (len(missing.handlers), missing.task_count) == (0, 0)


async def test_tasks_that_wait_for_their_key_are_not_counted_as_tried() -> None:
    harness = TaskHarness()
    harness.dispatcher.missing.add("resize", "another", MissingHandler(1, 0.0))
    for number in range(3):
        harness.add(f"k{number}", concurrencyKey="k")
    harness.open()
    await turn()
    assert (harness.dispatcher.waiting, harness.dispatcher.excess) == (1, 0)
