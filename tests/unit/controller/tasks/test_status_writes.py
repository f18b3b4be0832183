"""The transitions: which outcome counts, when it is acknowledged, and what is written when."""

import asyncio

import pytest

from taskqueue.api.task_status import NEVER_DECREASES
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.command import CommandKind
from taskqueue.model.task import Phase, RetryBackoff
from tests.unit.controller.fakes import KEY, TOKENS, TaskHarness, raw_task, turn
from tests.unit.controller.virtual_time import until_time

pytestmark = pytest.mark.looptime


async def test_a_short_task_is_one_write_and_its_outcome_waits_for_it() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await asyncio.sleep(0.3)
    tag = harness.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(10)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.urgent) == ("Succeeded", True)
    assert write.status["result"] == {"a": None}
    assert not harness.channel.acked
    assert not harness.recorded
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]
    assert harness.recorded == ["t"]
    assert not harness.entries
    assert harness.dispatcher.is_empty


async def test_running_is_written_when_it_has_lasted_two_seconds() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await asyncio.sleep(0.5)  # as a worker does: it reports an attempt that runs this long
    tag = harness.event(entry, EventKind.STARTED)
    assert harness.channel.acked == [tag]  # no state hangs on it
    await until_time(1.9)
    assert not harness.writer.writes
    await until_time(2.0)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["worker"]) == ("Running", "pod-1")
    assert not write.urgent


async def test_a_running_phase_that_has_ended_is_not_written() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    await asyncio.sleep(0.5)
    harness.event(entry, EventKind.STARTED)
    await asyncio.sleep(1)
    harness.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(10)
    assert harness.writer.phases == ["Succeeded"]


async def test_a_wait_below_two_seconds_is_not_written() -> None:
    harness = TaskHarness(backoff=RetryBackoff(1.0, 1.0, 1.0, 0.0))
    entry = await harness.published()
    first = harness.failed(entry)
    await asyncio.sleep(1.1)
    second = harness.event(entry, EventKind.SUCCEEDED, attempt=2)
    await asyncio.sleep(10)
    assert harness.writer.phases == ["Succeeded"]
    assert not harness.channel.acked
    harness.writer.writes[0].succeed()
    await turn()
    assert sorted(harness.channel.acked) == [first, second]
    assert [one["attempt"] for one in harness.writer.writes[0].status["history"]] == [1, 2]


async def test_retrying_is_written_after_two_seconds_and_then_its_outcome_acknowledged() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.failed(entry)
    assert entry.stage is TaskStage.HELD
    await asyncio.sleep(1.9)
    assert not harness.writer.writes
    await asyncio.sleep(0.2)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Retrying", "Boom")
    assert not harness.channel.acked
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]
    assert entry.task.uid in harness.entries
    await asyncio.sleep(5)
    assert harness.publisher.published[-1].message.attempt == 2


async def test_the_last_failure_ends_it() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published()
    harness.failed(entry)
    assert harness.writer.phases == ["Failed"]
    assert harness.writer.writes[0].status["reason"] == "RetriesExhausted"
    assert entry.stage is TaskStage.FINISHED
    assert harness.dispatcher.is_empty


# Numbers that a late writer, such as a former leader, has raised.


def late_writer_raises(harness: TaskHarness, **numbers: int) -> None:
    status = {"phase": "Pending", "observedGeneration": 1, **numbers}
    harness.api.objects[task_path("shop", "t")] = raw_task("t", status=status)


@pytest.mark.parametrize("rule", NEVER_DECREASES)
async def test_cancel_is_written_with_the_numbers_on_record(rule: str) -> None:
    harness = TaskHarness()
    await harness.published()
    late_writer_raises(harness, attempts=2, epoch=3)
    harness.add("t", cancel=True)
    harness.writer.writes.pop().refuse(422, f'Task "t" is invalid: {rule}')
    await asyncio.sleep(6)
    (write,) = harness.writer.writes
    status = write.status
    assert (status["phase"], status["attempts"], status["epoch"]) == ("Cancelled", 2, 3)
    write.succeed()
    await asyncio.sleep(60)
    assert (len(harness.writer.writes), harness.entries) == (1, {})


async def test_success_keeps_its_result_though_its_numbers_were_behind() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    late_writer_raises(harness, attempts=2, epoch=0)
    tag = harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes.pop().refuse(422, NEVER_DECREASES[0])
    await asyncio.sleep(6)
    (write,) = harness.writer.writes
    assert (write.status["attempts"], write.status["result"]) == (2, {"a": None})
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_attempt_whose_epoch_was_raised_is_recalled_and_published_with_that() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.publisher.published.clear()
    old = harness.token(entry)
    late_writer_raises(harness, attempts=1, epoch=3)
    harness.event(entry, EventKind.STARTED)
    await asyncio.sleep(2)
    harness.writer.writes.pop().refuse(422, NEVER_DECREASES[1])
    await asyncio.sleep(5.1)
    assert not harness.publisher.commands
    harness.writer.writes.pop().succeed()
    (command,) = harness.publisher.commands
    assert (command.kind, command.token) == (CommandKind.RELEASE, old)
    (publish,) = harness.publisher.published
    assert (publish.message.attempt, publish.message.epoch) == (1, 3)
    harness.event(entry, EventKind.SUCCEEDED, epoch=3)
    assert harness.writer.phases == ["Succeeded"]


async def test_a_repeated_outcome_waits_for_the_same_write() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    first = harness.event(entry, EventKind.SUCCEEDED)
    again = harness.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(3)
    assert harness.writer.phases == ["Succeeded"]
    assert not harness.channel.acked
    harness.writer.writes[0].succeed()
    await turn()
    assert sorted(harness.channel.acked) == [first, again]


async def test_an_outcome_of_an_earlier_attempt_is_dropped() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.failed(entry)
    await asyncio.sleep(2.1)
    harness.writer.writes[0].succeed()
    acked = len(harness.channel.acked)
    late = harness.event(entry, EventKind.SUCCEEDED, attempt=1)
    assert harness.channel.acked[acked:] == [late]
    assert entry.status.phase is Phase.RETRYING


@pytest.mark.parametrize("token", ["", "k.0", "other.0", TOKENS.sign("uid-t", 2, 0)])
async def test_a_forged_outcome_is_dropped(token: str) -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED, token=token)
    await asyncio.sleep(3)
    assert harness.channel.acked == [tag]
    assert not harness.writer.writes
    assert entry.stage is TaskStage.PUBLISHED


async def test_the_outcome_of_an_unknown_task_is_dropped() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED, uid="nobody")
    await turn()
    assert harness.channel.acked == [tag]
    assert not harness.given_up
    assert not harness.publisher.events


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"type": "odd"}'])
async def test_an_invalid_message_is_dead_lettered(body: bytes) -> None:
    harness = TaskHarness()
    harness.message(body)
    ((_, why),) = harness.given_up
    assert "not a CloudEvent of the contract" in why
    assert not harness.channel.acked  # once it is in the dead queue


async def test_a_released_attempt_is_published_again_with_the_same_token() -> None:
    harness = TaskHarness()
    entry = harness.add("t")
    harness.open()
    await turn()
    first = harness.publisher.published.pop().message
    tag = harness.event(entry, EventKind.RELEASED)
    assert harness.channel.acked == [tag]
    await turn()
    again = harness.publisher.published.pop().message
    assert (again.token, again.attempt) == (first.token, 1)
    assert not harness.writer.writes


@pytest.mark.parametrize(
    ("death", "reason"), [("delivery_limit", "WorkerLost"), ("rejected", "RetriesExhausted")]
)
async def test_a_message_dead_lettered_by_the_broker_is_a_failed_attempt(
    death: str, reason: str
) -> None:
    harness = TaskHarness(max_attempts=1)
    harness.add("t")
    harness.open()
    await turn()
    message: WorkMessage = harness.publisher.published[0].message
    tag = harness.dead_letter(message, **{"x-last-death-reason": death})
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", reason)
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_a_message_dead_lettered_by_a_worker_is_a_failed_attempt() -> None:
    harness = TaskHarness(max_attempts=1)
    harness.add("t")
    harness.open()
    await turn()
    message = harness.publisher.published[0].message
    harness.dead_letter(message, **{"tq-error": "header tq-version is 2", "tq-version": 2})
    (write,) = harness.writer.writes
    assert write.status["phase"] == "Failed"
    assert "header tq-version is 2" in write.status["message"]


async def test_an_outcome_that_breaks_the_contract_but_has_the_token_fails_the_attempt() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED, result=[1, 2])
    (write,) = harness.writer.writes
    assert write.status["phase"] == "Failed"
    assert "InvalidOutcome" in write.status["message"]
    assert not harness.given_up
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_a_result_above_the_limit_fails_for_good() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED, result={"text": "x" * 40_000})
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "NonRetryable")
    assert "16384 bytes" in write.status["message"]


async def test_an_unknown_handler_is_retried_and_costs_no_attempt() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published()
    error = EventError(
        type="UnknownHandler", message="no handler 'resize'; registered: none", reserved=True
    )
    for seconds in (5, 10, 20):
        tag = harness.event(entry, EventKind.FAILED, error=error)
        assert harness.channel.acked[-1] == tag
        await asyncio.sleep(seconds * 0.85)
        assert entry.stage is TaskStage.HELD
        await asyncio.sleep(seconds * 0.3)
        for write in harness.writer.writes:
            write.succeed()
        assert harness.dispatcher.published == 1
    assert harness.writer.phases == ["Blocked"]
    assert harness.writer.writes[0].status["reason"] == "UnknownHandler"
    assert "roll out workers" in harness.writer.writes[0].status["message"]
    assert harness.publisher.published.pop().message.attempt == 1


async def test_an_error_type_that_is_not_a_valid_reason_is_in_the_status_alone() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.FAILED, error=EventError(type="_InactiveRpcError", message="x"))
    await asyncio.sleep(3)
    (write,) = harness.writer.writes
    assert write.status["reason"] == "_InactiveRpcError"
    assert [one["reason"] for one in write.status["conditions"]] == ["Retrying"]


async def test_a_final_status_has_the_last_generation() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed(generation=2)
    assert not harness.recorded
    again = harness.writer.writes[1]
    assert again.status["observedGeneration"] == 2
    again.succeed(generation=2)
    await turn()
    assert harness.recorded == ["t"]
    assert harness.channel.acked == [tag]


async def test_a_released_running_attempt_is_pending_again() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    await asyncio.sleep(3)
    harness.writer.writes[0].succeed()
    harness.event(entry, EventKind.RELEASED)
    await asyncio.sleep(3)
    assert harness.writer.phases == ["Running", "Pending"]
    assert "worker" not in harness.writer.writes[1].status


@pytest.mark.parametrize("status", [413, 422])
async def test_a_refused_end_is_truncated(status: int) -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].refuse(status, "it is too long")
    assert not harness.channel.acked
    short = harness.writer.writes[1]
    assert short.status["phase"] == "Succeeded"
    assert "result" not in short.status
    assert "it is too long" in short.status["message"]
    short.succeed()
    await turn()
    assert harness.channel.acked == [tag]
    assert harness.recorded == ["t"]


async def test_a_truncated_end_that_is_refused_is_written_again_after_a_read() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.api.objects[task_path("shop", "t")] = raw_task()
    tag = harness.event(entry, EventKind.SUCCEEDED)
    for number in range(3):
        harness.writer.writes[number].refuse(422)
    assert not harness.channel.acked
    await asyncio.sleep(6)
    harness.writer.writes[3].succeed()
    await turn()
    assert harness.channel.acked == [tag]
    assert harness.recorded == ["t"]


async def test_a_task_that_is_not_found_is_read_before_it_is_removed() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].refuse(404)
    await turn()
    assert not harness.channel.acked
    await asyncio.sleep(6)
    assert harness.channel.acked == [tag]
    assert not harness.entries
    assert not harness.recorded
    assert harness.dispatcher.is_empty


async def test_a_refused_unfinished_status_is_truncated() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.failed(entry)
    await asyncio.sleep(3)
    harness.writer.writes[0].refuse(422, "it is too long")
    short = harness.writer.writes[1]
    assert short.status["phase"] == "Retrying"
    (kept,) = short.status["history"]
    assert (kept["attempt"], "message" in kept) == (1, False)  # the next is attempt 2
    short.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_a_deleted_task_is_neither_run_nor_written_again() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.failed(entry)
    await harness.delete(entry)
    assert harness.channel.acked == [tag]
    await asyncio.sleep(30)
    assert not harness.publisher.published
    assert not harness.writer.writes


async def test_a_task_that_waits_for_its_queue_says_so_once() -> None:
    harness = TaskHarness()
    harness.dispatcher.config = None
    harness.add("t")
    for _ in range(3):
        harness.tasks.on_queue_changed(KEY)
        await asyncio.sleep(3)
        for write in harness.writer.writes:
            write.succeed()
    assert harness.writer.phases == ["Blocked"]
    assert harness.writer.writes[0].status["reason"] == "QueueNotFound"


async def test_a_short_wait_is_not_written() -> None:
    harness = TaskHarness()
    harness.dispatcher.config = None
    harness.add("t")
    await asyncio.sleep(1)
    harness.dispatcher.config = harness.config
    harness.tasks.on_queue_changed(KEY)
    await asyncio.sleep(10)
    assert not harness.writer.writes
