"""Changes of a spec take effect at once, and send commands to the worker."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.command import CommandKind
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, KEY, TOKENS, TaskHarness, turn

pytestmark = pytest.mark.looptime


def commands(harness: TaskHarness) -> list[tuple[str, str]]:
    """Return what was ordered: (kind, token)."""
    return [(command.kind.value, command.token) for command in harness.publisher.commands]


def token(attempt: int = 1, epoch: int = 0, name: str = "t") -> str:
    return TOKENS.sign(f"uid-{name}", attempt, epoch)


async def run_long(harness: TaskHarness, entry: TrackedTask) -> None:
    """Have an attempt run and be known to."""
    await asyncio.sleep(0.5)
    harness.event(entry, EventKind.STARTED)
    await asyncio.sleep(3)
    harness.writer.writes.pop().succeed()


# Cancel.


async def test_a_queued_task_is_cancelled_without_a_command() -> None:
    harness = TaskHarness()
    entry = harness.add("t")
    harness.add("t", cancel=True)
    harness.open()
    await asyncio.sleep(1)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Cancelled", "Cancelled")
    assert write.urgent
    assert ("history" in write.status, write.status["attempts"]) == (False, 0)
    assert entry.stage is TaskStage.FINISHED
    assert not harness.publisher.published
    assert not harness.publisher.commands


async def test_a_running_task_is_cancelled_at_once_with_a_command() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await run_long(harness, entry)
    harness.add("t", cancel=True)
    assert commands(harness) == [("cancel", token())]
    (write,) = harness.writer.writes
    (attempt,) = write.status["history"]
    assert (attempt["outcome"], attempt["reason"], attempt["worker"]) == (
        "Cancelled",
        "Cancelled",
        "pod-1",
    )
    assert attempt["startTime"] == to_rfc3339(EPOCH)
    late = harness.event(entry, EventKind.SUCCEEDED)
    assert harness.channel.acked[-1] == late
    write.succeed()
    await turn()
    assert [event["type"] for event in harness.publisher.events] == [
        "dev.taskqueue.task.cancelled.v1"
    ]


async def test_a_cancel_counts_though_an_earlier_outcome_is_not_written_yet() -> None:
    harness = TaskHarness(max_attempts=9)
    entry = await harness.published()
    first = harness.failed(entry)
    await asyncio.sleep(5.1)
    harness.publisher.settle(Settled.CONFIRMED)
    harness.add("t", cancel=True)
    assert commands(harness) == [("cancel", token(attempt=2))]
    for write in harness.writer.writes:
        write.succeed()
    await turn()
    assert harness.channel.acked == [first]


async def test_a_task_cancelled_while_the_operator_was_away_is_stopped_by_the_next_one() -> None:
    harness = TaskHarness()
    harness.open()
    harness.synced = False
    harness.add(
        "t",
        cancel=True,
        status={"phase": "Running", "attempts": 1, "observedGeneration": 1, "worker": "pod-1"},
    )
    await turn()
    assert commands(harness) == [("cancel", token())]
    assert harness.writer.phases == ["Cancelled"]


async def test_commands_wait_for_the_broker() -> None:
    harness = TaskHarness()
    await harness.published()
    harness.dispatcher.close()
    harness.add("t", cancel=True)
    assert not harness.publisher.commands
    assert not harness.dispatcher.is_empty
    harness.open()
    await turn()
    assert commands(harness) == [("cancel", token())]
    assert harness.dispatcher.is_empty


async def test_deleting_a_task_sends_a_cancel_command() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await harness.delete(entry)
    assert commands(harness) == [("cancel", token())]
    assert not harness.writer.writes


async def test_a_succeeded_attempt_gets_no_cancel_command() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.add("t", cancel=True)
    assert harness.writer.phases == ["Succeeded"]
    assert not harness.publisher.commands


# Suspend and resume.


async def test_a_published_task_is_released_only_when_its_epoch_is_written() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await run_long(harness, entry)
    harness.add("t", suspend=True)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["epoch"], write.urgent) == ("Suspended", 1, True)
    assert write.status["attempts"] == 1
    await asyncio.sleep(30)
    assert not harness.publisher.commands
    write.succeed()
    assert commands(harness) == [("release", token())]
    stale = harness.event(entry, EventKind.RELEASED)
    assert harness.channel.acked[-1] == stale
    assert entry.stage is TaskStage.HELD


async def test_a_resumed_task_runs_the_same_attempt_under_another_token() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.add("t", suspend=True)
    harness.writer.writes.pop().succeed()
    await asyncio.sleep(50)
    harness.publisher.published.clear()
    harness.add("t", suspend=False)
    await turn()
    message = harness.publisher.published.pop().message
    assert (message.attempt, message.epoch, message.token) == (1, 1, token(epoch=1))
    harness.event(entry, EventKind.SUCCEEDED)  # of the attempt that was recalled
    assert entry.stage is TaskStage.PUBLISHED
    await asyncio.sleep(3)
    (write,) = harness.writer.writes
    (condition,) = [one for one in write.status["conditions"] if one["type"] == "Suspended"]
    assert (condition["status"], condition["lastTransitionTime"]) == (
        "False",
        to_rfc3339(EPOCH + 50),
    )


async def test_the_release_command_is_sent_though_the_task_is_resumed_meanwhile() -> None:
    harness = TaskHarness()
    await harness.published()
    for suspend in (True, False, True):
        harness.add("t", suspend=suspend)
    for write in harness.writer.writes:
        write.succeed()
    await turn()
    assert commands(harness)[0] == ("release", token())


async def test_a_cancel_after_a_suspend_still_sends_a_command() -> None:
    harness = TaskHarness()
    await harness.published()
    harness.add("t", suspend=True)
    harness.add("t", cancel=True)
    for write in harness.writer.writes:
        write.succeed()
    await turn()
    assert token() in [command for _, command in commands(harness)]


async def test_a_suspended_task_says_so_after_two_seconds_and_waits() -> None:
    harness = TaskHarness()
    harness.open()
    harness.add("t", suspend=True)
    await asyncio.sleep(1.9)
    assert not harness.writer.writes
    await asyncio.sleep(0.2)
    assert harness.writer.phases == ["Suspended"]
    assert not harness.publisher.published


async def test_a_possible_stray_copy_is_recalled_too() -> None:
    """Published before the connection was lost, its fate unknown."""
    harness = TaskHarness()
    harness.add("t")
    harness.open()
    await turn()
    harness.publisher.settle(Settled.UNKNOWN)
    harness.add("t", suspend=True)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["epoch"]) == ("Suspended", 1)
    write.succeed()
    assert commands(harness) == [("release", token())]


# Time.


async def test_start_after_is_waited_for() -> None:
    harness = TaskHarness()
    harness.open()
    entry = harness.add("t", startAfter=to_rfc3339(EPOCH + 60))
    await asyncio.sleep(3)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Scheduled", "StartAfter")
    assert write.status["nextAttemptTime"] == to_rfc3339(EPOCH + 60)
    write.succeed()
    await asyncio.sleep(56.9)
    assert not harness.publisher.published
    await asyncio.sleep(0.2)
    assert harness.publisher.names == ["t"]
    assert entry.status.phase is Phase.PENDING


async def test_the_deadline_ends_whatever_the_task_waits_for() -> None:
    harness = TaskHarness()
    entry = harness.add("t", activeDeadlineSeconds=30)
    await asyncio.sleep(29.9)
    assert entry.stage is TaskStage.WAITING
    await asyncio.sleep(0.2)
    assert harness.writer.phases == ["Failed"]
    assert harness.writer.writes[0].status["reason"] == "DeadlineExceeded"
    assert not harness.publisher.commands


async def test_the_deadline_stops_a_running_attempt() -> None:
    harness = TaskHarness()
    entry = await harness.published(activeDeadlineSeconds=30)
    await run_long(harness, entry)
    await asyncio.sleep(30)
    (write,) = harness.writer.writes
    (attempt,) = write.status["history"]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "DeadlineExceeded")
    assert commands(harness) == [("cancel", token())]


async def test_a_deadline_given_later_counts_at_once() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await asyncio.sleep(100)
    harness.add("t", activeDeadlineSeconds=50)
    assert entry.status.reason == "DeadlineExceeded"


async def test_a_finished_task_leaves_no_timer() -> None:
    harness = TaskHarness()
    entry = await harness.published(activeDeadlineSeconds=30)
    harness.event(entry, EventKind.SUCCEEDED)
    assert (entry.reconcile_at, entry.write_at) == (None, None)


# Queues.


async def test_a_deleted_queue_lets_what_is_published_run_on() -> None:
    harness = TaskHarness()
    running = await harness.published("running")
    waiting = harness.add("waiting")
    await run_long(harness, running)
    harness.dispatcher.close()
    harness.dispatcher.config = None
    harness.tasks.on_queue_changed(KEY)
    assert (running.stage, running.status.phase) == (TaskStage.PUBLISHED, Phase.RUNNING)
    assert (waiting.status.phase, waiting.status.reason) == (Phase.BLOCKED, "QueueNotFound")
    harness.event(running, EventKind.SUCCEEDED)
    assert harness.writer.phases[-1] == "Succeeded"


@pytest.mark.parametrize("kind", [EventKind.STARTED])
@pytest.mark.parametrize("which", ["unknown", "finished", "stale"])
async def test_a_worker_that_begins_an_attempt_nobody_waits_for_gets_a_cancel_command(
    kind: EventKind, which: str
) -> None:
    harness = TaskHarness()
    entry = await harness.published()
    match which:
        case "unknown":
            tag = harness.event(entry, kind, uid="uid-other")
            expected = token(name="other")
        case "finished":
            harness.event(entry, EventKind.SUCCEEDED)
            harness.writer.writes[0].succeed()
            tag, expected = harness.event(entry, kind), token()
        case _:
            harness.failed(entry)
            tag, expected = harness.event(entry, kind), token()
    await turn()
    assert commands(harness) == [(CommandKind.CANCEL.value, expected)]
    assert tag in harness.channel.acked


async def test_a_started_attempt_that_is_awaited_is_left_alone() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    assert not harness.publisher.commands


async def test_an_attempt_a_worker_stopped_by_itself_is_published_under_another_token() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.CANCELLED)
    await asyncio.sleep(0.9)
    assert not harness.publisher.published  # not at once: it may stop whatever it gets
    await asyncio.sleep(0.2)
    message = harness.publisher.published.pop().message
    assert (message.attempt, message.epoch, message.token) == (1, 1, token(epoch=1))
    assert harness.channel.acked == [tag]
    again = harness.event(entry, EventKind.CANCELLED)
    assert harness.channel.acked == [tag, again]
    assert entry.stage is TaskStage.PUBLISHED
