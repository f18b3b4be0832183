"""Orders about attempts that run, wait, come later or have ended."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.command import CommandKind
from taskqueue.worker.runtime import STUCK_SECONDS
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import Bench

pytestmark = pytest.mark.looptime

#: An order, and the event that answers it.
ANSWERS = pytest.mark.parametrize(
    ("kind", "answer"),
    [(CommandKind.CANCEL, "task.cancelled"), (CommandKind.RELEASE, "task.released")],
)


@ANSWERS
async def test_a_running_attempt_is_asked_to_end_and_its_end_is_told(
    kind: CommandKind, answer: str
) -> None:
    bench = Bench()
    bench.deliver(work("a"))
    await asyncio.sleep(0.25)
    bench.order(kind, "a")
    (execution,) = bench.executor.started
    assert execution.cancelled
    assert bench.told == [(answer, "a")]
    execution.succeed()
    assert bench.told == [(answer, "a")], "its late result does not count"
    await turn()
    assert bench.channel.settled == [], "not before the answer is confirmed"
    (told,) = bench.publisher.settle()
    assert told.key == f"shop.q.{answer}"
    assert told.event.seconds == (0.25 if kind is CommandKind.CANCEL else None)
    await turn()
    assert bench.channel.settled == [("ack", 1, False)]


@ANSWERS
async def test_a_waiting_attempt_is_answered_and_never_begins(
    kind: CommandKind, answer: str
) -> None:
    bench = Bench(slots=1)
    bench.deliver(work("running"))
    bench.deliver(work("waiting"))
    bench.deliver(work("suspect"), deliveries=1)
    bench.order(kind, "waiting")
    bench.order(kind, "suspect")
    assert bench.told == [(answer, "waiting"), (answer, "suspect")]
    bench.executor.started[0].succeed()
    assert len(bench.executor.started) == 1
    bench.publisher.settle()
    await turn()
    assert bench.channel.settled == [("ack", 3, True)]


@ANSWERS
async def test_an_attempt_that_comes_after_its_order_is_answered_and_never_runs(
    kind: CommandKind, answer: str
) -> None:
    bench = Bench()
    bench.order(kind, "a")
    for _ in range(2):
        bench.deliver(work("a"))
        assert bench.told == [(answer, "a")]
        await turn()
        bench.publisher.settle()
        await turn()
    assert bench.executor.started == []
    assert bench.channel.settled == [("ack", 1, False), ("ack", 2, False)]


@ANSWERS
async def test_a_stopped_attempt_that_comes_again_is_answered_again(
    kind: CommandKind, answer: str
) -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.order(kind, "a")
    bench.publisher.settle()
    bench.executor.started[0].succeed()
    bench.deliver(work("a"), deliveries=1)
    assert bench.told == [(answer, "a")]
    assert len(bench.executor.started) == 1


async def test_an_unconfirmed_answer_is_published_again() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.order(CommandKind.CANCEL, "a")
    bench.publisher.settle(Settled.UNKNOWN, "lost")
    await asyncio.sleep(30)
    assert bench.told == [("task.cancelled", "a")]
    assert bench.channel.settled == []


async def test_a_repeated_order_changes_nothing() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    for _ in range(3):
        bench.order(CommandKind.CANCEL, "a")
    assert bench.told == [("task.cancelled", "a")]


async def test_an_order_after_the_end_changes_nothing_and_the_end_is_told_again() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.executor.started[0].succeed()
    bench.order(CommandKind.CANCEL, "a")
    assert bench.told == [("task.succeeded", "a")]
    bench.publisher.settle()
    bench.order(CommandKind.CANCEL, "a")
    bench.deliver(work("a"), deliveries=1)
    assert bench.told == [("task.succeeded", "a")]


async def test_an_order_for_another_attempt_touches_nothing() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.order(CommandKind.CANCEL, "b")
    assert bench.told == []
    assert not bench.executor.started[0].cancelled


async def test_a_handler_that_does_not_look_keeps_only_its_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(slots=1)
    bench.deliver(work("a"))
    bench.deliver(work("b"))
    bench.order(CommandKind.CANCEL, "a")
    await asyncio.sleep(STUCK_SECONDS + 0.1)
    assert (bench.runtime.busy, bench.runtime.stuck) == (1, 1)
    assert "task.stuck" in [record.getMessage() for record in caplog.records]
    await asyncio.sleep(3600)
    assert bench.told == [("task.cancelled", "a")], "neither timed out nor told twice"
    bench.executor.started[0].succeed()
    assert len(bench.executor.started) == 2
    assert bench.left == [], "the process ends for keyed work only"


async def test_in_a_drain_an_order_ends_the_wait_for_a_running_attempt() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.runtime.begin_drain()
    waiting = asyncio.create_task(bench.runtime.idle())
    await turn()
    assert not waiting.done()
    bench.order(CommandKind.CANCEL, "a")
    await asyncio.wait_for(waiting, 1)
