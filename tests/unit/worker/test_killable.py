"""When an execution can be killed no slot is stuck, and no worker must end for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.contract.outcome import EventKind
from taskqueue.model.command import CommandKind
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.keyed_guard import REDELIVERY_INTERVALS
from taskqueue.worker.run_machine import (
    KILLED_SECONDS,
    LOST_SECONDS,
    STUCK_SECONDS,
    TIMED_OUT_SECONDS,
)
from tests.unit.worker.fakes import FakeExecution, turn, work
from tests.unit.worker.harness import RuntimeHarness, direct
from tests.unit.worker.test_keyed_guard import HEARTBEAT, connect

pytestmark = pytest.mark.looptime


def running(harness: RuntimeHarness, **changes: Any) -> FakeExecution:
    """Deliver a message and make its execution a killable one."""
    harness.deliver(work(**changes))
    execution = harness.executor.started[-1]
    execution.killable = True
    return execution


async def test_a_slot_that_will_be_free_again_is_not_stuck(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = RuntimeHarness()
    execution = running(harness, timeout_seconds=1)
    await asyncio.sleep(1 + 2 * STUCK_SECONDS)
    assert execution.cancelled
    assert (harness.runtime.busy, harness.runtime.stuck) == (1, 0)
    assert "task.stuck" not in caplog.messages


async def test_keyed_work_that_does_not_end_is_killed_and_the_worker_lives() -> None:
    harness = RuntimeHarness()
    connect(harness).fall_silent()
    execution = running(harness, fence=7)
    await asyncio.sleep(REDELIVERY_INTERVALS * HEARTBEAT + LOST_SECONDS)
    assert execution.killed
    assert harness.aborts == []
    execution.succeed()
    await asyncio.sleep(60)
    assert harness.aborts == []
    assert harness.reported == [("task.started", "k.1")], "another worker has it"


async def test_keyed_work_that_even_a_kill_does_not_end_takes_the_process_with_it() -> None:
    harness = RuntimeHarness()
    connect(harness).fall_silent()
    running(harness, fence=7)
    await asyncio.sleep(REDELIVERY_INTERVALS * HEARTBEAT + LOST_SECONDS + KILLED_SECONDS)
    assert len(harness.aborts) == 1


async def test_a_keyed_time_out_is_told_when_the_kill_has_ended_it() -> None:
    harness = RuntimeHarness()
    connect(harness)
    execution = running(harness, fence=7, timeout_seconds=10)
    await asyncio.sleep(10 + TIMED_OUT_SECONDS)
    assert execution.killed
    assert harness.reported[1:] == []
    execution.succeed()
    assert harness.events[-1] is EventKind.FAILED
    assert harness.aborts == []


async def test_what_runs_at_the_very_end_is_killed() -> None:
    harness = RuntimeHarness()
    first, second = running(harness, token="k.1"), running(harness, token="k.2")
    second.killable = False
    harness.runtime.begin_drain()
    harness.runtime.release_running()
    harness.runtime.kill_running()
    assert (first.killed, second.killed) == (True, False)


async def test_a_task_that_was_lost_with_its_process_is_delivered_again() -> None:
    harness = RuntimeHarness()
    execution = running(harness)
    execution.done(AttemptResult(seconds=0.1, lost="the fork server died"))
    await turn()
    assert harness.reported == []
    assert harness.channel.settled == [("nack", 1, True)]
    harness.deliver(work(), deliveries=1)
    assert harness.reported == [("task.released", "k.1")]


async def test_a_direct_message_too() -> None:
    harness = RuntimeHarness()
    harness.deliver(direct())
    harness.executor.started[0].done(AttemptResult(seconds=0.1, lost="the fork server died"))
    await turn()
    assert harness.reported == []
    assert harness.channel.settled == [("nack", 1, True)]


async def test_one_that_was_to_end_anyway_is_told_once() -> None:
    harness = RuntimeHarness()
    execution = running(harness)
    harness.command(CommandKind.CANCEL)
    execution.done(AttemptResult(seconds=0.1, lost="the fork server died"))
    await turn()
    assert harness.events == [EventKind.CANCELLED]
    assert harness.channel.settled == []
