"""Commands about attempts that run, are queued, come later or have ended."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.model.command import CommandKind
from taskqueue.worker.run_machine import STUCK_SECONDS
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import RuntimeHarness

pytestmark = pytest.mark.looptime

#: A command, and the event that answers it.
ANSWERS = pytest.mark.parametrize(
    ("kind", "answer"),
    [(CommandKind.CANCEL, "task.cancelled"), (CommandKind.RELEASE, "task.released")],
)


@ANSWERS
async def test_a_running_attempt_is_asked_to_end_and_its_end_is_published(
    kind: CommandKind, answer: str
) -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    await asyncio.sleep(0.25)
    harness.command(kind, "a")
    (execution,) = harness.executor.started
    assert execution.cancelled
    assert harness.reported == [(answer, "a")]
    execution.succeed()
    assert harness.reported == [(answer, "a")], "its late result does not count"
    await turn()
    assert harness.channel.settled == [], "not before the answer is confirmed"
    (published,) = harness.publisher.settle()
    assert published.key == f"shop.q.{answer}"
    assert published.event.seconds == (0.25 if kind is CommandKind.CANCEL else None)
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


@ANSWERS
async def test_a_queued_attempt_is_answered_and_never_starts(
    kind: CommandKind, answer: str
) -> None:
    harness = RuntimeHarness(slots=1)
    harness.deliver(work("running"))
    harness.deliver(work("waiting"))
    harness.deliver(work("suspect", checkpointed=None), deliveries=1)
    harness.command(kind, "waiting")
    harness.command(kind, "suspect")
    assert harness.reported == [(answer, "waiting"), (answer, "suspect")]
    harness.executor.started[0].succeed()
    assert len(harness.executor.started) == 1
    harness.publisher.settle()
    await turn()
    assert harness.channel.settled == [("ack", 3, True)]


@ANSWERS
async def test_an_attempt_that_comes_after_its_command_is_answered_and_never_runs(
    kind: CommandKind, answer: str
) -> None:
    harness = RuntimeHarness()
    harness.command(kind, "a")
    for _ in range(2):
        harness.deliver(work("a"))
        assert harness.reported == [(answer, "a")]
        await turn()
        harness.publisher.settle()
        await turn()
    assert harness.executor.started == []
    assert harness.channel.settled == [("ack", 1, False), ("ack", 2, False)]


@ANSWERS
async def test_a_stopped_attempt_that_comes_again_is_answered_again(
    kind: CommandKind, answer: str
) -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.command(kind, "a")
    harness.publisher.settle()
    harness.executor.started[0].succeed()
    harness.deliver(work("a"), deliveries=1)
    assert harness.reported == [(answer, "a")]
    assert len(harness.executor.started) == 1


async def test_an_unconfirmed_answer_is_published_again() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.command(CommandKind.CANCEL, "a")
    harness.publisher.settle(Settled.UNKNOWN, "lost")
    await asyncio.sleep(30)
    assert harness.reported == [("task.cancelled", "a")]
    assert harness.channel.settled == []


async def test_a_repeated_command_changes_nothing() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    for _ in range(3):
        harness.command(CommandKind.CANCEL, "a")
    assert harness.reported == [("task.cancelled", "a")]


async def test_a_command_after_the_end_changes_nothing_and_the_end_is_repeated() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.executor.started[0].succeed()
    harness.command(CommandKind.CANCEL, "a")
    assert harness.reported == [("task.succeeded", "a")]
    harness.publisher.settle()
    harness.command(CommandKind.CANCEL, "a")
    harness.deliver(work("a"), deliveries=1)
    assert harness.reported == [("task.succeeded", "a")]


async def test_a_command_for_another_attempt_touches_nothing() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.command(CommandKind.CANCEL, "b")
    assert harness.reported == []
    assert not harness.executor.started[0].cancelled


async def test_a_handler_that_ignores_a_cancel_keeps_only_its_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = RuntimeHarness(slots=1)
    harness.deliver(work("a"))
    harness.deliver(work("b"))
    harness.command(CommandKind.CANCEL, "a")
    await asyncio.sleep(STUCK_SECONDS + 0.1)
    assert (harness.runtime.busy, harness.runtime.stuck) == (1, 1)
    assert "task.stuck" in [record.getMessage() for record in caplog.records]
    await asyncio.sleep(3600)
    assert harness.reported == [("task.cancelled", "a")], "neither timed out nor reported twice"
    harness.executor.started[0].succeed()
    assert len(harness.executor.started) == 2
    assert harness.aborts == [], "the process ends for keyed work only"


async def test_in_a_drain_a_command_ends_the_wait_for_a_running_attempt() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.runtime.begin_drain()
    waiting = asyncio.create_task(harness.runtime.wait_until_idle())
    await turn()
    assert not waiting.done()
    harness.command(CommandKind.CANCEL, "a")
    await asyncio.wait_for(waiting, 1)
