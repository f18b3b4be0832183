"""The transitions: which outcome counts, when it is acknowledged, and what is written when."""

import asyncio

import pytest

from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.task import Phase, RetryBackoff
from tests.unit.controller.fakes import KEY, TOKENS, Engine, raw_task, turn, until_time

pytestmark = pytest.mark.looptime


async def test_a_short_task_is_one_write_and_its_outcome_waits_for_it() -> None:
    engine = Engine()
    entry = await engine.published()
    await asyncio.sleep(0.3)
    tag = engine.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(10)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.urgent) == ("Succeeded", True)
    assert write.status["result"] == {"a": None}
    assert not engine.channel.acked
    assert not engine.recorded
    write.succeed()
    await turn()
    assert engine.channel.acked == [tag]
    assert engine.recorded == ["t"]
    assert not engine.entries
    assert engine.dispatcher.empty


async def test_running_is_written_when_it_has_lasted_two_seconds() -> None:
    engine = Engine()
    entry = await engine.published()
    await asyncio.sleep(0.5)  # as a worker does: it tells of an attempt that runs this long
    tag = engine.event(entry, EventKind.STARTED)
    assert engine.channel.acked == [tag]  # no state hangs on it
    await until_time(1.9)
    assert not engine.writer.writes
    await until_time(2.0)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["worker"]) == ("Running", "pod-1")
    assert not write.urgent


async def test_what_was_running_a_second_ago_is_not_written() -> None:
    engine = Engine()
    entry = await engine.published()
    await asyncio.sleep(0.5)
    engine.event(entry, EventKind.STARTED)
    await asyncio.sleep(1)
    engine.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(10)
    assert engine.writer.phases == ["Succeeded"]


async def test_a_wait_below_two_seconds_is_not_written() -> None:
    engine = Engine(backoff=RetryBackoff(1.0, 1.0, 1.0, 0.0))
    entry = await engine.published()
    first = engine.failed(entry)
    await asyncio.sleep(1.1)
    second = engine.event(entry, EventKind.SUCCEEDED, attempt=2)
    await asyncio.sleep(10)
    assert engine.writer.phases == ["Succeeded"]
    assert not engine.channel.acked
    engine.writer.writes[0].succeed()
    await turn()
    assert sorted(engine.channel.acked) == [first, second]
    assert [one["attempt"] for one in engine.writer.writes[0].status["history"]] == [1, 2]


async def test_retrying_is_written_after_two_seconds_and_then_its_outcome_is_let_go() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.failed(entry)
    assert entry.stage is TaskStage.HELD
    await asyncio.sleep(1.9)
    assert not engine.writer.writes
    await asyncio.sleep(0.2)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Retrying", "Boom")
    assert not engine.channel.acked
    write.succeed()
    await turn()
    assert engine.channel.acked == [tag]
    assert entry.task.uid in engine.entries
    await asyncio.sleep(5)
    assert engine.publisher.published[-1].message.attempt == 2


async def test_the_last_failure_ends_it() -> None:
    engine = Engine(max_attempts=1)
    entry = await engine.published()
    engine.failed(entry)
    assert engine.writer.phases == ["Failed"]
    assert engine.writer.writes[0].status["reason"] == "RetriesExhausted"
    assert entry.stage is TaskStage.FINISHED
    assert engine.dispatcher.empty


async def test_a_repeated_outcome_waits_for_the_same_write() -> None:
    engine = Engine()
    entry = await engine.published()
    first = engine.event(entry, EventKind.SUCCEEDED)
    again = engine.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(3)
    assert engine.writer.phases == ["Succeeded"]
    assert not engine.channel.acked
    engine.writer.writes[0].succeed()
    await turn()
    assert sorted(engine.channel.acked) == [first, again]


async def test_an_outcome_of_an_earlier_attempt_is_dropped() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.failed(entry)
    await asyncio.sleep(2.1)
    engine.writer.writes[0].succeed()
    acked = len(engine.channel.acked)
    late = engine.event(entry, EventKind.SUCCEEDED, attempt=1)
    assert engine.channel.acked[acked:] == [late]
    assert entry.status.phase is Phase.RETRYING


@pytest.mark.parametrize("token", ["", "k.0", "other.0", TOKENS.sign("uid-t", 2, 0)])
async def test_a_forged_outcome_is_dropped(token: str) -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED, token=token)
    await asyncio.sleep(3)
    assert engine.channel.acked == [tag]
    assert not engine.writer.writes
    assert entry.stage is TaskStage.PUBLISHED


async def test_the_outcome_of_an_unknown_task_is_dropped() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED, uid="nobody")
    await turn()
    assert engine.channel.acked == [tag]
    assert not engine.given_up
    assert not engine.publisher.events


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"type": "odd"}'])
async def test_what_is_not_of_the_contract_is_given_up(body: bytes) -> None:
    engine = Engine()
    engine.message(body)
    ((_, why),) = engine.given_up
    assert "not a CloudEvent of the contract" in why
    assert not engine.channel.acked  # once it is in the dead queue


async def test_what_a_worker_gave_back_goes_out_again_with_the_same_token() -> None:
    engine = Engine()
    entry = engine.add("t")
    engine.open()
    await turn()
    first = engine.publisher.published.pop().message
    tag = engine.event(entry, EventKind.RELEASED)
    assert engine.channel.acked == [tag]
    await turn()
    again = engine.publisher.published.pop().message
    assert (again.token, again.attempt) == (first.token, 1)
    assert not engine.writer.writes


@pytest.mark.parametrize(
    ("death", "reason"), [("delivery_limit", "WorkerLost"), ("rejected", "RetriesExhausted")]
)
async def test_a_message_the_broker_gave_up_is_a_failed_attempt(death: str, reason: str) -> None:
    engine = Engine(max_attempts=1)
    engine.add("t")
    engine.open()
    await turn()
    message: WorkMessage = engine.publisher.published[0].message
    tag = engine.dead_letter(message, **{"x-last-death-reason": death})
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", reason)
    write.succeed()
    await turn()
    assert engine.channel.acked == [tag]


async def test_a_message_a_worker_gave_up_is_a_failed_attempt_too() -> None:
    engine = Engine(max_attempts=1)
    engine.add("t")
    engine.open()
    await turn()
    message = engine.publisher.published[0].message
    engine.dead_letter(message, **{"tq-error": "header tq-version is 2", "tq-version": 2})
    (write,) = engine.writer.writes
    assert write.status["phase"] == "Failed"
    assert "header tq-version is 2" in write.status["message"]


async def test_an_outcome_that_breaks_the_contract_but_has_the_token_fails_the_attempt() -> None:
    engine = Engine(max_attempts=1)
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED, result=[1, 2])
    (write,) = engine.writer.writes
    assert write.status["phase"] == "Failed"
    assert "InvalidOutcome" in write.status["message"]
    assert not engine.given_up
    write.succeed()
    await turn()
    assert engine.channel.acked == [tag]


async def test_a_result_above_the_limit_fails_for_good() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.SUCCEEDED, result={"text": "x" * 40_000})
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "NonRetryable")
    assert "16384 bytes" in write.status["message"]


async def test_a_handler_nobody_knows_is_waited_for_and_costs_no_attempt() -> None:
    engine = Engine(max_attempts=1)
    entry = await engine.published()
    error = EventError(type="UnknownHandler", message="no handler 'resize'; registered: none")
    for _ in range(3):
        tag = engine.event(entry, EventKind.FAILED, error=error)
        assert engine.channel.acked[-1] == tag
        assert entry.stage is TaskStage.HELD
        await asyncio.sleep(5.5)
        for write in engine.writer.writes:
            write.succeed()
        assert engine.dispatcher.published == 1
    assert engine.writer.phases == ["Blocked"]
    assert engine.writer.writes[0].status["reason"] == "UnknownHandler"
    assert "roll out workers" in engine.writer.writes[0].status["message"]
    assert engine.publisher.published.pop().message.attempt == 1


async def test_an_error_type_that_is_no_reason_is_told_in_the_status_alone() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.FAILED, error=EventError(type="_InactiveRpcError", message="x"))
    await asyncio.sleep(3)
    (write,) = engine.writer.writes
    assert write.status["reason"] == "_InactiveRpcError"
    assert [one["reason"] for one in write.status["conditions"]] == ["Retrying"]


async def test_a_final_status_speaks_of_the_last_generation() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED)
    engine.writer.writes[0].succeed(generation=2)
    assert not engine.recorded
    again = engine.writer.writes[1]
    assert again.status["observedGeneration"] == 2
    again.succeed(generation=2)
    await turn()
    assert engine.recorded == ["t"]
    assert engine.channel.acked == [tag]


async def test_a_running_attempt_given_back_is_pending_again() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.STARTED)
    await asyncio.sleep(3)
    engine.writer.writes[0].succeed()
    engine.event(entry, EventKind.RELEASED)
    await asyncio.sleep(3)
    assert engine.writer.phases == ["Running", "Pending"]
    assert engine.writer.writes[1].status["worker"] == ""


@pytest.mark.parametrize("status", [413, 422])
async def test_a_refused_end_is_written_in_short(status: int) -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED)
    engine.writer.writes[0].refuse(status, "it is too long")
    assert not engine.channel.acked
    short = engine.writer.writes[1]
    assert short.status["phase"] == "Succeeded"
    assert "result" not in short.status
    assert "it is too long" in short.status["message"]
    short.succeed()
    await turn()
    assert engine.channel.acked == [tag]
    assert engine.recorded == ["t"]


async def test_an_end_that_is_refused_in_short_too_is_written_again_after_a_look() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.api.objects[task_path("shop", "t")] = raw_task()
    tag = engine.event(entry, EventKind.SUCCEEDED)
    engine.writer.writes[0].refuse(422)
    engine.writer.writes[1].refuse(422)
    assert not engine.channel.acked
    await asyncio.sleep(6)
    engine.writer.writes[2].succeed()
    await turn()
    assert engine.channel.acked == [tag]
    assert engine.recorded == ["t"]


async def test_a_task_that_is_not_found_is_looked_for_before_it_is_forgotten() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED)
    engine.writer.writes[0].refuse(404)
    await turn()
    assert not engine.channel.acked
    await asyncio.sleep(6)
    assert engine.channel.acked == [tag]
    assert not engine.entries
    assert not engine.recorded
    assert engine.dispatcher.empty


async def test_a_status_on_the_way_that_is_refused_is_written_in_short() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.failed(entry)
    await asyncio.sleep(3)
    engine.writer.writes[0].refuse(422, "it is too long")
    short = engine.writer.writes[1]
    assert short.status["phase"] == "Retrying"
    (kept,) = short.status["history"]
    assert (kept["attempt"], kept["message"]) == (1, "")  # the next is attempt 2
    short.succeed()
    await turn()
    assert engine.channel.acked == [tag]


async def test_a_deleted_task_is_neither_run_nor_written_again() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.failed(entry)
    await engine.delete(entry)
    assert engine.channel.acked == [tag]
    await asyncio.sleep(30)
    assert not engine.publisher.published
    assert not engine.writer.writes


async def test_a_task_that_waits_for_its_queue_says_so_once() -> None:
    engine = Engine()
    engine.dispatcher.config = None
    engine.add("t")
    for _ in range(3):
        engine.tasks.on_queue_changed(KEY)
        await asyncio.sleep(3)
        for write in engine.writer.writes:
            write.succeed()
    assert engine.writer.phases == ["Blocked"]
    assert engine.writer.writes[0].status["reason"] == "QueueNotFound"


async def test_what_waited_for_a_moment_only_says_nothing() -> None:
    engine = Engine()
    engine.dispatcher.config = None
    engine.add("t")
    await asyncio.sleep(1)
    engine.dispatcher.config = engine.config
    engine.tasks.on_queue_changed(KEY)
    await asyncio.sleep(10)
    assert not engine.writer.writes
