"""Two of a key never run at once: keyed work ends before the broker can deliver it again."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from taskqueue.amqp.connection import Connection
from taskqueue.contract.work import WorkMessage
from taskqueue.model.command import CommandKind
from taskqueue.worker.keyed_guard import REDELIVERY_INTERVALS, STOP_INTERVALS
from taskqueue.worker.run_machine import LOST_SECONDS, TIMED_OUT_SECONDS
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import RuntimeHarness

pytestmark = pytest.mark.looptime

HEARTBEAT = 5.0


class FakeConnection:
    """A connection whose broker is heard when the test says so."""

    heartbeat_seconds = HEARTBEAT

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._next_frame: asyncio.TimerHandle | None = None

    @property
    def silent_seconds(self) -> float:
        return self._loop.time() - self._heard

    def hear(self) -> None:
        self._heard = self._loop.time()

    def keep_heard(self) -> None:
        """Be heard as often as a healthy broker is."""
        self.hear()
        self._next_frame = self._loop.call_later(HEARTBEAT / 2, self.keep_heard)

    def fall_silent(self) -> None:
        assert self._next_frame is not None
        self._next_frame.cancel()


def connect(harness: RuntimeHarness) -> FakeConnection:
    connection = FakeConnection()
    connection.keep_heard()
    harness.runtime.on_connected(cast(Connection, connection))
    return connection


def keyed(token: str = "a", *, timeout_seconds: int = 600) -> WorkMessage:  # noqa: S107
    return work(token, fence=7, timeout_seconds=timeout_seconds)


async def test_the_handler_gets_the_fence() -> None:
    harness = RuntimeHarness()
    harness.deliver(keyed())
    harness.deliver(work("b"))
    assert [each.attempt.fence for each in harness.executor.started] == [7, None]


async def test_it_ends_like_any_other_while_all_is_well() -> None:
    harness = RuntimeHarness()
    connect(harness)
    harness.deliver(keyed())
    await asyncio.sleep(60)
    assert not harness.executor.started[0].cancelled
    harness.publisher.settle()
    harness.executor.started[0].succeed()
    assert harness.reported == [("task.succeeded", "a")]
    assert harness.aborts == []


# The connection is lost.


async def test_a_lost_connection_ends_keyed_work_at_once_and_nothing_is_published() -> None:
    harness = RuntimeHarness(slots=3)
    connect(harness)
    harness.deliver(keyed("key"))
    harness.deliver(work("plain"))
    harness.runtime.on_channel_lost()
    assert [each.cancelled for each in harness.executor.started] == [True, False]
    for execution in harness.executor.started:
        execution.succeed()
    assert harness.reported == [("task.succeeded", "plain")]
    await asyncio.sleep(60)
    assert harness.aborts == []


async def test_a_keyed_execution_that_runs_on_after_the_loss_takes_the_process_with_it() -> None:
    harness = RuntimeHarness()
    connect(harness)
    harness.deliver(keyed())
    harness.runtime.on_channel_lost()
    await asyncio.sleep(LOST_SECONDS - 0.01)
    assert harness.aborts == []
    await asyncio.sleep(0.02)
    assert [fields["task"] for fields in harness.aborts] == ["task-a"]


async def test_one_redelivered_here_waits_for_the_end_of_the_first() -> None:
    harness = RuntimeHarness(slots=3)
    connect(harness)
    harness.deliver(keyed())
    harness.runtime.on_channel_lost()
    harness.open_channel()
    harness.deliver(keyed(), deliveries=1)
    harness.deliver(keyed(), deliveries=1)
    assert len(harness.executor.started) == 1
    harness.executor.started[0].succeed()
    assert len(harness.executor.started) == 2
    assert harness.reported == []
    harness.executor.started[1].succeed()
    harness.publisher.settle()
    await turn()
    assert harness.channel.settled == [("ack", 2, True)]


async def test_one_redelivered_here_and_commanded_to_stop_is_answered_after_the_first() -> None:
    harness = RuntimeHarness(slots=3)
    connect(harness)
    harness.deliver(keyed())
    harness.runtime.on_channel_lost()
    harness.open_channel()
    harness.deliver(keyed(), deliveries=1)
    harness.command(CommandKind.CANCEL, "a")
    assert harness.reported == []
    harness.executor.started[0].succeed()
    assert harness.reported == [("task.cancelled", "a")]
    assert len(harness.executor.started) == 1


async def test_one_redelivered_here_is_dropped_with_the_next_loss() -> None:
    harness = RuntimeHarness(slots=3)
    connect(harness)
    harness.deliver(keyed())
    harness.runtime.on_channel_lost()
    harness.open_channel()
    harness.deliver(keyed(), deliveries=1)
    harness.runtime.on_channel_lost()
    harness.executor.started[0].succeed()
    assert len(harness.executor.started) == 1
    harness.open_channel()
    harness.deliver(keyed(), deliveries=2)
    assert len(harness.executor.started) == 2


# The broker is silent.


async def test_silence_ends_keyed_work_before_the_broker_can_deliver_it_again() -> None:
    harness = RuntimeHarness(slots=2)
    connection = connect(harness)
    harness.deliver(keyed("key"))
    harness.deliver(work("plain", timeout_seconds=600))
    harness.deliver(keyed("waiting"))
    await asyncio.sleep(60)
    connection.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT - HEARTBEAT / 2)
    assert not harness.executor.started[0].cancelled
    await asyncio.sleep(HEARTBEAT / 2 + 0.2)
    assert [each.cancelled for each in harness.executor.started] == [True, False]
    harness.executor.started[0].succeed()
    assert harness.channel.settled == [("nack", 3, True), ("nack", 1, True)]
    assert len(harness.executor.started) == 2, "nothing keyed begins now"
    await asyncio.sleep(60)
    assert {event for event, _ in harness.reported} == {"task.started"}, "no end of the keyed one"
    assert harness.aborts == []


async def test_a_keyed_execution_that_runs_on_in_the_silence_takes_the_process_with_it() -> None:
    harness = RuntimeHarness()
    connection = connect(harness)
    harness.deliver(keyed())
    connection.fall_silent()
    await asyncio.sleep(REDELIVERY_INTERVALS * HEARTBEAT - 0.1)
    assert harness.aborts == []
    await asyncio.sleep(0.2)
    assert len(harness.aborts) == 1


async def test_a_broker_heard_again_in_time_leaves_the_process_alone_until_the_time_out() -> None:
    harness = RuntimeHarness()
    connection = connect(harness)
    harness.deliver(keyed(timeout_seconds=60))
    connection.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT + 0.5)
    assert harness.executor.started[0].cancelled
    connection.keep_heard()
    await asyncio.sleep(50)
    assert harness.aborts == []
    await asyncio.sleep(10)
    assert len(harness.aborts) == 1


async def test_what_was_stopped_in_a_short_silence_goes_back_to_the_broker() -> None:
    harness = RuntimeHarness()
    connection = connect(harness)
    harness.deliver(keyed())
    connection.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT + 0.5)
    connection.keep_heard()
    harness.executor.started[0].succeed()
    await turn()
    assert harness.channel.settled == [("nack", 1, True)]
    harness.deliver(keyed(), deliveries=1)
    assert len(harness.executor.started) == 2


async def test_a_loop_that_stood_still_checks_twice() -> None:
    harness = RuntimeHarness()
    connection = connect(harness)
    harness.deliver(keyed())
    connection.fall_silent()
    await asyncio.sleep(STOP_INTERVALS * HEARTBEAT + 0.05)
    connection.keep_heard()
    await asyncio.sleep(60)
    assert not harness.executor.started[0].cancelled


# Its end is published when its execution has ended.


async def test_a_cancel_is_answered_when_the_execution_has_ended() -> None:
    harness = RuntimeHarness()
    harness.deliver(keyed())
    harness.command(CommandKind.CANCEL, "a")
    assert harness.executor.started[0].cancelled
    assert harness.reported == []
    harness.deliver(keyed(), deliveries=1)
    harness.executor.started[0].succeed()
    assert harness.reported == [("task.cancelled", "a")]
    harness.publisher.settle()
    await turn()
    assert harness.channel.settled == [("ack", 2, True)]


async def test_a_cancelled_execution_has_until_its_time_out() -> None:
    harness = RuntimeHarness()
    harness.deliver(keyed(timeout_seconds=60))
    await asyncio.sleep(5)
    harness.command(CommandKind.RELEASE, "a")
    await asyncio.sleep(54)
    assert harness.aborts == []
    await asyncio.sleep(2)
    assert len(harness.aborts) == 1


async def test_a_time_out_is_published_when_the_execution_has_ended() -> None:
    harness = RuntimeHarness()
    harness.deliver(keyed(timeout_seconds=60))
    await asyncio.sleep(61)
    harness.publisher.settle()
    assert harness.executor.started[0].cancelled
    assert harness.reported == []
    harness.executor.started[0].succeed()
    assert harness.reported == [("task.failed", "a")]
    assert harness.aborts == []


async def test_an_execution_that_outlives_its_time_out_takes_the_process_with_it() -> None:
    harness = RuntimeHarness()
    harness.deliver(keyed(timeout_seconds=60))
    await asyncio.sleep(60 + TIMED_OUT_SECONDS - 0.1)
    assert harness.aborts == []
    await asyncio.sleep(0.2)
    assert len(harness.aborts) == 1


async def test_at_the_end_of_the_grace_period_it_is_released_when_it_has_ended() -> None:
    harness = RuntimeHarness()
    harness.deliver(keyed())
    harness.runtime.begin_drain()
    harness.runtime.release_running()
    waiting = asyncio.create_task(harness.runtime.wait_until_keyed_ended())
    await turn()
    assert not waiting.done()
    assert harness.reported == []
    harness.runtime.abort_if_keyed_runs()
    assert len(harness.aborts) == 1, "the connections must not close before"
    harness.executor.started[0].succeed()
    await asyncio.wait_for(waiting, 1)
    assert harness.reported == [("task.released", "a")]
    harness.runtime.abort_if_keyed_runs()
    assert len(harness.aborts) == 1


async def test_a_command_does_not_answer_for_an_execution_that_has_not_ended() -> None:
    harness = RuntimeHarness(slots=3)
    connect(harness)
    harness.deliver(keyed())
    harness.runtime.on_channel_lost()  # disowns it
    harness.open_channel()
    harness.command(CommandKind.CANCEL, "a")
    harness.deliver(keyed(), deliveries=1)
    assert not harness.reported  # the answer would free the concurrency key
    harness.executor.started[0].succeed()
    await turn()
    assert len(harness.executor.started) == 1
    assert len(harness.reported) == 1


async def test_a_blocked_run_counts_its_own_deliveries() -> None:
    harness = RuntimeHarness(slots=3)
    connect(harness)
    harness.deliver(keyed())
    harness.runtime.on_channel_lost()
    harness.open_channel()
    harness.deliver(keyed(), deliveries=3)  # as many as it may have
    harness.executor.started[0].succeed()
    await turn()
    assert len(harness.executor.started) == 1
    assert len(harness.reported) == 1
