"""What people ask of a Task is done at once, and told to its worker."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.command import CommandKind
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, KEY, TOKENS, Engine, turn

pytestmark = pytest.mark.looptime


def orders(engine: Engine) -> list[tuple[str, str]]:
    """Return what was ordered: (kind, token)."""
    return [(order.kind.value, order.token) for order in engine.publisher.orders]


def token(attempt: int = 1, epoch: int = 0, name: str = "t") -> str:
    return TOKENS.sign(f"uid-{name}", attempt, epoch)


async def run_long(engine: Engine, entry: TrackedTask) -> None:
    """Have an attempt run and be known to."""
    await asyncio.sleep(0.5)
    engine.event(entry, EventKind.STARTED)
    await asyncio.sleep(3)
    engine.writer.writes.pop().succeed()


# Cancel.


async def test_a_waiting_task_is_cancelled_without_an_order() -> None:
    engine = Engine()
    entry = engine.add("t")
    engine.add("t", cancel=True)
    engine.open()
    await asyncio.sleep(1)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Cancelled", "Cancelled")
    assert write.urgent
    assert (write.status["history"], write.status["attempts"]) == ([], 0)
    assert entry.stage is TaskStage.FINISHED
    assert not engine.publisher.published
    assert not engine.publisher.orders


async def test_a_running_task_is_cancelled_at_once_and_its_worker_told() -> None:
    engine = Engine()
    entry = await engine.published()
    await run_long(engine, entry)
    engine.add("t", cancel=True)
    assert orders(engine) == [("cancel", token())]
    (write,) = engine.writer.writes
    (attempt,) = write.status["history"]
    assert (attempt["outcome"], attempt["reason"], attempt["worker"]) == (
        "Cancelled",
        "Cancelled",
        "pod-1",
    )
    assert attempt["startTime"] == to_rfc3339(EPOCH)
    late = engine.event(entry, EventKind.SUCCEEDED)
    assert engine.channel.acked[-1] == late
    write.succeed()
    await turn()
    assert [event["type"] for event in engine.publisher.events] == [
        "dev.taskqueue.task.cancelled.v1"
    ]


async def test_a_cancel_counts_though_an_earlier_outcome_is_not_written_yet() -> None:
    engine = Engine(max_attempts=9)
    entry = await engine.published()
    first = engine.failed(entry)
    await asyncio.sleep(5.1)
    engine.publisher.settle(Settled.CONFIRMED)
    engine.add("t", cancel=True)
    assert orders(engine) == [("cancel", token(attempt=2))]
    for write in engine.writer.writes:
        write.succeed()
    await turn()
    assert engine.channel.acked == [first]


async def test_a_task_cancelled_while_the_operator_was_away_is_stopped_by_the_next_one() -> None:
    engine = Engine()
    engine.open()
    engine.synced = False
    engine.add(
        "t",
        cancel=True,
        status={"phase": "Running", "attempts": 1, "observedGeneration": 1, "worker": "pod-1"},
    )
    await turn()
    assert orders(engine) == [("cancel", token())]
    assert engine.writer.phases == ["Cancelled"]


async def test_orders_wait_for_the_broker() -> None:
    engine = Engine()
    await engine.published()
    engine.dispatcher.close()
    engine.add("t", cancel=True)
    assert not engine.publisher.orders
    assert not engine.dispatcher.empty
    engine.open()
    await turn()
    assert orders(engine) == [("cancel", token())]
    assert engine.dispatcher.empty


async def test_the_worker_of_a_deleted_task_is_told_to_stop() -> None:
    engine = Engine()
    entry = await engine.published()
    await engine.delete(entry)
    assert orders(engine) == [("cancel", token())]
    assert not engine.writer.writes


async def test_nobody_is_told_to_stop_what_succeeded() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.SUCCEEDED)
    engine.add("t", cancel=True)
    assert engine.writer.phases == ["Succeeded"]
    assert not engine.publisher.orders


# Suspend and resume.


async def test_a_published_task_is_released_only_when_its_epoch_is_written() -> None:
    engine = Engine()
    entry = await engine.published()
    await run_long(engine, entry)
    engine.add("t", suspend=True)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["epoch"], write.urgent) == ("Suspended", 1, True)
    assert write.status["attempts"] == 1
    await asyncio.sleep(30)
    assert not engine.publisher.orders
    write.succeed()
    assert orders(engine) == [("release", token())]
    stale = engine.event(entry, EventKind.RELEASED)
    assert engine.channel.acked[-1] == stale
    assert entry.stage is TaskStage.HELD


async def test_a_resumed_task_runs_the_same_attempt_under_another_token() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.add("t", suspend=True)
    engine.writer.writes.pop().succeed()
    await asyncio.sleep(50)
    engine.publisher.published.clear()
    engine.add("t", suspend=False)
    await turn()
    message = engine.publisher.published.pop().message
    assert (message.attempt, message.epoch, message.token) == (1, 1, token(epoch=1))
    engine.event(entry, EventKind.SUCCEEDED)  # of the attempt that was taken back
    assert entry.stage is TaskStage.PUBLISHED
    await asyncio.sleep(3)
    (write,) = engine.writer.writes
    (condition,) = [one for one in write.status["conditions"] if one["type"] == "Suspended"]
    assert (condition["status"], condition["lastTransitionTime"]) == (
        "False",
        to_rfc3339(EPOCH + 50),
    )


async def test_the_release_is_ordered_though_the_task_goes_to_and_fro_meanwhile() -> None:
    engine = Engine()
    await engine.published()
    for suspend in (True, False, True):
        engine.add("t", suspend=suspend)
    for write in engine.writer.writes:
        write.succeed()
    await turn()
    assert orders(engine)[0] == ("release", token())


async def test_a_cancel_after_a_suspend_still_tells_the_worker() -> None:
    engine = Engine()
    await engine.published()
    engine.add("t", suspend=True)
    engine.add("t", cancel=True)
    for write in engine.writer.writes:
        write.succeed()
    await turn()
    assert token() in [order for _, order in orders(engine)]


async def test_a_suspended_task_says_so_after_two_seconds_and_waits() -> None:
    engine = Engine()
    engine.open()
    engine.add("t", suspend=True)
    await asyncio.sleep(1.9)
    assert not engine.writer.writes
    await asyncio.sleep(0.2)
    assert engine.writer.phases == ["Suspended"]
    assert not engine.publisher.published


async def test_what_may_still_be_about_is_taken_back_too() -> None:
    """Published before the connection was lost, its fate unknown."""
    engine = Engine()
    engine.add("t")
    engine.open()
    await turn()
    engine.publisher.settle(Settled.UNKNOWN)
    engine.add("t", suspend=True)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["epoch"]) == ("Suspended", 1)
    write.succeed()
    assert orders(engine) == [("release", token())]


# Time.


async def test_start_after_is_waited_for() -> None:
    engine = Engine()
    engine.open()
    entry = engine.add("t", startAfter=to_rfc3339(EPOCH + 60))
    await asyncio.sleep(3)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Scheduled", "StartAfter")
    assert write.status["nextAttemptTime"] == to_rfc3339(EPOCH + 60)
    write.succeed()
    await asyncio.sleep(56.9)
    assert not engine.publisher.published
    await asyncio.sleep(0.2)
    assert engine.publisher.names == ["t"]
    assert entry.status.phase is Phase.PENDING


async def test_the_deadline_ends_whatever_the_task_waits_for() -> None:
    engine = Engine()
    entry = engine.add("t", activeDeadlineSeconds=30)
    await asyncio.sleep(29.9)
    assert entry.stage is TaskStage.WAITING
    await asyncio.sleep(0.2)
    assert engine.writer.phases == ["Failed"]
    assert engine.writer.writes[0].status["reason"] == "DeadlineExceeded"
    assert not engine.publisher.orders


async def test_the_deadline_stops_a_running_attempt() -> None:
    engine = Engine()
    entry = await engine.published(activeDeadlineSeconds=30)
    await run_long(engine, entry)
    await asyncio.sleep(30)
    (write,) = engine.writer.writes
    (attempt,) = write.status["history"]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "DeadlineExceeded")
    assert orders(engine) == [("cancel", token())]


async def test_a_deadline_given_later_counts_at_once() -> None:
    engine = Engine()
    entry = await engine.published()
    await asyncio.sleep(100)
    engine.add("t", activeDeadlineSeconds=50)
    assert entry.status.reason == "DeadlineExceeded"


async def test_no_alarm_is_left_of_a_finished_task() -> None:
    engine = Engine()
    entry = await engine.published(activeDeadlineSeconds=30)
    engine.event(entry, EventKind.SUCCEEDED)
    assert (entry.reconcile_timer, entry.write_timer) == (None, None)


# Queues.


async def test_a_deleted_queue_lets_what_is_published_run_on() -> None:
    engine = Engine()
    running = await engine.published("running")
    waiting = engine.add("waiting")
    await run_long(engine, running)
    engine.dispatcher.close()
    engine.dispatcher.config = None
    engine.tasks.on_queue_changed(KEY)
    assert (running.stage, running.status.phase) == (TaskStage.PUBLISHED, Phase.RUNNING)
    assert (waiting.status.phase, waiting.status.reason) == (Phase.BLOCKED, "QueueNotFound")
    engine.event(running, EventKind.SUCCEEDED)
    assert engine.writer.phases[-1] == "Succeeded"


@pytest.mark.parametrize("kind", [EventKind.STARTED])
@pytest.mark.parametrize("which", ["unknown", "finished", "stale"])
async def test_a_worker_that_begins_what_nobody_waits_for_is_told_to_stop(
    kind: EventKind, which: str
) -> None:
    engine = Engine()
    entry = await engine.published()
    match which:
        case "unknown":
            tag = engine.event(entry, kind, uid="uid-other")
            expected = token(name="other")
        case "finished":
            engine.event(entry, EventKind.SUCCEEDED)
            engine.writer.writes[0].succeed()
            tag, expected = engine.event(entry, kind), token()
        case _:
            engine.failed(entry)
            tag, expected = engine.event(entry, kind), token()
    await turn()
    assert orders(engine) == [(CommandKind.CANCEL.value, expected)]
    assert tag in engine.channel.acked


async def test_a_started_attempt_that_is_awaited_is_left_alone() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.STARTED)
    assert not engine.publisher.orders


async def test_an_attempt_a_worker_stopped_by_itself_is_published_under_another_token() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.CANCELLED)
    await asyncio.sleep(0.9)
    assert not engine.publisher.published  # not at once: it may stop whatever it gets
    await asyncio.sleep(0.2)
    message = engine.publisher.published.pop().message
    assert (message.attempt, message.epoch, message.token) == (1, 1, token(epoch=1))
    assert engine.channel.acked == [tag]
    again = engine.event(entry, EventKind.CANCELLED)
    assert engine.channel.acked == [tag, again]
    assert entry.stage is TaskStage.PUBLISHED
