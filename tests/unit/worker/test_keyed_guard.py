"""Two of a key never run at once: keyed work ends before the broker can deliver it again."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from taskqueue.contract.command import CommandKind
from taskqueue.contract.work import WorkMessage
from taskqueue.worker.keyed_guard import (
    LOST_SECONDS,
    REDELIVERY_INTERVALS,
    STOP_INTERVALS,
    TIMED_OUT_SECONDS,
    WatchedConnection,
)
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import Bench

pytestmark = pytest.mark.looptime

HEARTBEAT = 5.0


class FakeLine:
    """A connection whose broker is heard when the test says so."""

    heartbeat_seconds = HEARTBEAT

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._beating: asyncio.TimerHandle | None = None

    @property
    def silent_seconds(self) -> float:
        return self._loop.time() - self._heard

    def hear(self) -> None:
        self._heard = self._loop.time()

    def beat(self) -> None:
        """Be heard as often as a healthy broker is."""
        self.hear()
        self._beating = self._loop.call_later(HEARTBEAT / 2, self.beat)

    def fall_silent(self) -> None:
        assert self._beating is not None
        self._beating.cancel()


def connect(bench: Bench) -> FakeLine:
    line = FakeLine()
    line.beat()
    bench.runtime.connected(cast(WatchedConnection, line))
    return line


def keyed(token: str = "a", *, timeout_seconds: int = 600) -> WorkMessage:  # noqa: S107
    return work(token, fence=7, timeout_seconds=timeout_seconds)


async def test_the_handler_gets_the_fence() -> None:
    bench = Bench()
    bench.deliver(keyed())
    bench.deliver(work("b"))
    assert [each.attempt.fence for each in bench.executor.started] == [7, None]


async def test_it_ends_like_any_other_while_all_is_well() -> None:
    bench = Bench()
    connect(bench)
    bench.deliver(keyed())
    await asyncio.sleep(60)
    assert not bench.executor.started[0].cancelled
    bench.publisher.settle()
    bench.executor.started[0].succeed()
    assert bench.told == [("task.succeeded", "a")]
    assert bench.left == []


# The connection is lost.


async def test_a_lost_connection_ends_keyed_work_at_once_and_nothing_is_told_of_it() -> None:
    bench = Bench(slots=3)
    connect(bench)
    bench.deliver(keyed("key"))
    bench.deliver(work("plain"))
    bench.runtime.channel_lost()
    assert [each.cancelled for each in bench.executor.started] == [True, False]
    for execution in bench.executor.started:
        execution.succeed()
    assert bench.told == [("task.succeeded", "plain")]
    await asyncio.sleep(60)
    assert bench.left == []


async def test_a_keyed_execution_that_runs_on_after_the_loss_takes_the_process_with_it() -> None:
    bench = Bench()
    connect(bench)
    bench.deliver(keyed())
    bench.runtime.channel_lost()
    await asyncio.sleep(LOST_SECONDS - 0.01)
    assert bench.left == []
    await asyncio.sleep(0.02)
    assert [fields["task"] for fields in bench.left] == ["task-a"]


async def test_one_delivered_again_here_waits_for_the_end_of_the_first() -> None:
    bench = Bench(slots=3)
    connect(bench)
    bench.deliver(keyed())
    bench.runtime.channel_lost()
    bench.open_channel()
    bench.deliver(keyed(), deliveries=1)
    bench.deliver(keyed(), deliveries=1)
    assert len(bench.executor.started) == 1
    bench.executor.started[0].succeed()
    assert len(bench.executor.started) == 2
    assert bench.told == []
    bench.executor.started[1].succeed()
    bench.publisher.settle()
    await turn()
    assert bench.channel.settled == [("ack", 2, True)]


async def test_one_delivered_again_here_and_ordered_to_stop_is_answered_after_the_first() -> None:
    bench = Bench(slots=3)
    connect(bench)
    bench.deliver(keyed())
    bench.runtime.channel_lost()
    bench.open_channel()
    bench.deliver(keyed(), deliveries=1)
    bench.order(CommandKind.CANCEL, "a")
    assert bench.told == []
    bench.executor.started[0].succeed()
    assert bench.told == [("task.cancelled", "a")]
    assert len(bench.executor.started) == 1


async def test_one_delivered_again_here_is_forgotten_with_the_next_loss() -> None:
    bench = Bench(slots=3)
    connect(bench)
    bench.deliver(keyed())
    bench.runtime.channel_lost()
    bench.open_channel()
    bench.deliver(keyed(), deliveries=1)
    bench.runtime.channel_lost()
    bench.executor.started[0].succeed()
    assert len(bench.executor.started) == 1
    bench.open_channel()
    bench.deliver(keyed(), deliveries=2)
    assert len(bench.executor.started) == 2


# The broker is silent.


async def test_silence_ends_keyed_work_before_the_broker_can_deliver_it_again() -> None:
    bench = Bench(slots=2)
    line = connect(bench)
    bench.deliver(keyed("key"))
    bench.deliver(work("plain", timeout_seconds=600))
    bench.deliver(keyed("waiting"))
    await asyncio.sleep(60)
    line.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT - HEARTBEAT / 2)
    assert not bench.executor.started[0].cancelled
    await asyncio.sleep(HEARTBEAT / 2 + 0.2)
    assert [each.cancelled for each in bench.executor.started] == [True, False]
    bench.executor.started[0].succeed()
    assert bench.channel.settled == [("nack", 3, True), ("nack", 1, True)]
    assert len(bench.executor.started) == 2, "nothing keyed begins now"
    await asyncio.sleep(60)
    assert {event for event, _ in bench.told} == {"task.started"}, "no end of the keyed one"
    assert bench.left == []


async def test_a_keyed_execution_that_runs_on_in_the_silence_takes_the_process_with_it() -> None:
    bench = Bench()
    line = connect(bench)
    bench.deliver(keyed())
    line.fall_silent()
    await asyncio.sleep(REDELIVERY_INTERVALS * HEARTBEAT - 0.1)
    assert bench.left == []
    await asyncio.sleep(0.2)
    assert len(bench.left) == 1


async def test_a_broker_heard_again_in_time_leaves_the_process_alone_until_the_time_out() -> None:
    bench = Bench()
    line = connect(bench)
    bench.deliver(keyed(timeout_seconds=60))
    line.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT + 0.5)
    assert bench.executor.started[0].cancelled
    line.beat()
    await asyncio.sleep(50)
    assert bench.left == []
    await asyncio.sleep(10)
    assert len(bench.left) == 1


async def test_what_was_stopped_in_a_short_silence_goes_back_to_the_broker() -> None:
    bench = Bench()
    line = connect(bench)
    bench.deliver(keyed())
    line.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT + 0.5)
    line.beat()
    bench.executor.started[0].succeed()
    await turn()
    assert bench.channel.settled == [("nack", 1, True)]
    bench.deliver(keyed(), deliveries=1)
    assert len(bench.executor.started) == 2


async def test_a_loop_that_stood_still_looks_twice() -> None:
    bench = Bench()
    line = connect(bench)
    bench.deliver(keyed())
    line.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT + 0.05)
    line.beat()
    await asyncio.sleep(60)
    assert not bench.executor.started[0].cancelled


# Its end is told when it has ended.


async def test_a_cancel_is_answered_when_the_execution_has_ended() -> None:
    bench = Bench()
    bench.deliver(keyed())
    bench.order(CommandKind.CANCEL, "a")
    assert bench.executor.started[0].cancelled
    assert bench.told == []
    bench.deliver(keyed(), deliveries=1)
    bench.executor.started[0].succeed()
    assert bench.told == [("task.cancelled", "a")]
    bench.publisher.settle()
    await turn()
    assert bench.channel.settled == [("ack", 2, True)]


async def test_a_cancelled_execution_has_until_its_time_out() -> None:
    bench = Bench()
    bench.deliver(keyed(timeout_seconds=60))
    await asyncio.sleep(5)
    bench.order(CommandKind.RELEASE, "a")
    await asyncio.sleep(54)
    assert bench.left == []
    await asyncio.sleep(2)
    assert len(bench.left) == 1


async def test_a_time_out_is_told_when_the_execution_has_ended() -> None:
    bench = Bench()
    bench.deliver(keyed(timeout_seconds=60))
    await asyncio.sleep(61)
    bench.publisher.settle()
    assert bench.executor.started[0].cancelled
    assert bench.told == []
    bench.executor.started[0].succeed()
    assert bench.told == [("task.failed", "a")]
    assert bench.left == []


async def test_an_execution_that_outlives_its_time_out_takes_the_process_with_it() -> None:
    bench = Bench()
    bench.deliver(keyed(timeout_seconds=60))
    await asyncio.sleep(60 + TIMED_OUT_SECONDS - 0.1)
    assert bench.left == []
    await asyncio.sleep(0.2)
    assert len(bench.left) == 1


async def test_at_the_end_of_the_grace_period_it_is_released_when_it_has_ended() -> None:
    bench = Bench()
    bench.deliver(keyed())
    bench.runtime.begin_drain()
    bench.runtime.release_running()
    waiting = asyncio.create_task(bench.runtime.keyed_ended())
    await turn()
    assert not waiting.done()
    assert bench.told == []
    bench.runtime.check_keyed_ended()
    assert len(bench.left) == 1, "the connections must not close before"
    bench.executor.started[0].succeed()
    await asyncio.wait_for(waiting, 1)
    assert bench.told == [("task.released", "a")]
    bench.runtime.check_keyed_ended()
    assert len(bench.left) == 1
