"""From delivery to acknowledgement; the test controls the broker and the handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.worker import delivery_handler
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.outcome import raised
from taskqueue.worker.prefetch import AHEAD, ENOUGH_RUNS
from taskqueue.worker.run_machine import STARTED_SECONDS
from taskqueue.worker.sdk import Fail, Snooze
from tests.unit.worker.fakes import FakeExecution, payload, turn, work
from tests.unit.worker.harness import RuntimeHarness, direct

pytestmark = pytest.mark.looptime


# Tasks.


async def test_a_delivery_is_acknowledged_after_its_outcome_is_confirmed() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", attempt=2, epoch=5))
    (execution,) = harness.executor.started
    attempt = execution.attempt
    assert (attempt.handler, attempt.payload) == ("resize", {"width": 10})
    assert (attempt.task, attempt.uid) == ("shop/task-k.1", "uid-k.1")
    assert (attempt.attempt, attempt.max_attempts, attempt.timeout_seconds) == (2, 3, 30)
    execution.succeed(0.25, {"pages": 1})
    await turn()
    assert harness.channel.settled == []
    (published,) = harness.publisher.settle()
    event = published.event
    assert event.kind is EventKind.SUCCEEDED
    assert published.key == "shop.q.task.succeeded"
    assert (event.token, event.attempt, event.epoch) == ("k.1", 2, 5)
    assert (event.seconds, event.result, event.worker) == (0.25, {"pages": 1}, "pod-1")
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_no_more_run_than_there_are_slots_and_the_rest_in_order() -> None:
    harness = RuntimeHarness(slots=2)
    for token in ("a", "b", "c", "d"):
        harness.deliver(work(token))
    assert [each.attempt.uid for each in harness.executor.started] == ["uid-a", "uid-b"]
    harness.executor.started[1].succeed()
    harness.executor.started[0].succeed()
    assert [each.attempt.uid for each in harness.executor.started[2:]] == ["uid-c", "uid-d"]


async def test_a_failure_carries_type_message_and_whether_to_retry() -> None:
    harness = RuntimeHarness()
    harness.deliver(work())
    harness.executor.started[0].done(raised(Fail("gone", type="NotFound"), 0.1))
    (published,) = harness.publisher.settle()
    assert published.event.kind is EventKind.FAILED
    assert published.event.error is not None
    assert (published.event.error.type, published.event.error.retryable) == ("NotFound", False)


async def test_a_snooze_carries_its_seconds_and_is_answered_when_its_token_comes_again() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1"))
    harness.executor.started[0].done(raised(Snooze(90), 0.1))
    (published,) = harness.publisher.settle()
    assert published.key == "shop.q.task.snoozed"
    assert (published.event.kind, published.event.seconds) == (EventKind.SNOOZED, 90)
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]
    harness.deliver(work("k.1"))
    (again,) = harness.publisher.settle()
    assert again.body == published.body
    assert len(harness.executor.started) == 1


async def test_an_unconfirmed_outcome_keeps_the_delivery_until_it_is_confirmed() -> None:
    harness = RuntimeHarness()
    harness.deliver(work())
    harness.executor.started[0].succeed()
    harness.publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
    await asyncio.sleep(30)
    assert harness.channel.settled == []
    harness.publisher.settle()
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_the_start_of_a_long_attempt_is_published_and_repeated_after_a_reconnect() -> None:
    harness = RuntimeHarness()
    harness.deliver(work())
    await asyncio.sleep(STARTED_SECONDS - 0.01)
    assert harness.events == []
    await asyncio.sleep(5)
    assert harness.events == [EventKind.STARTED]
    harness.runtime.on_publisher_ready()
    assert harness.events == [EventKind.STARTED, EventKind.STARTED]


async def test_the_start_of_a_short_attempt_is_not_published() -> None:
    harness = RuntimeHarness()
    harness.deliver(work())
    await asyncio.sleep(STARTED_SECONDS / 2)
    harness.executor.started[0].succeed()
    await asyncio.sleep(5)
    assert harness.events == [EventKind.SUCCEEDED]


async def test_a_time_out_is_published_in_time_and_keeps_the_slot_until_the_handler_returns() -> (
    None
):
    harness = RuntimeHarness(slots=1)
    harness.deliver(work("a", timeout_seconds=3))
    harness.deliver(work("b"))
    await asyncio.sleep(2.99)
    assert harness.events == [EventKind.STARTED]
    await asyncio.sleep(0.02)
    assert harness.events == [EventKind.STARTED, EventKind.FAILED]
    error = harness.publisher.published[1].event.error
    assert error is not None
    assert (error.type, error.retryable) == ("Timeout", True)
    assert "3 s" in error.message
    (execution,) = harness.executor.started
    assert execution.cancelled
    assert (harness.runtime.busy, harness.runtime.stuck) == (1, 1)
    execution.succeed(10)
    assert len(harness.publisher.published) == 2, "its late result does not count"
    assert len(harness.executor.started) == 2, "its slot is free again"
    assert harness.runtime.stuck == 0


async def test_a_handler_that_outlives_its_time_out_is_called_stuck_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = RuntimeHarness()
    harness.deliver(work("ends", timeout_seconds=3))
    harness.deliver(work("stays", timeout_seconds=3))
    await asyncio.sleep(3.1)
    harness.executor.started[0].succeed()
    await asyncio.sleep(60)
    stuck = [record for record in caplog.records if record.getMessage() == "task.stuck"]
    assert [vars(record)["fields"]["task"] for record in stuck] == ["task-stays"]


async def test_an_attempt_delivered_too_often_is_not_run() -> None:
    harness = RuntimeHarness()
    older = {"checkpointed": None, "max_deliveries": 2}  # an operator that does not count
    harness.deliver(work("a", **older), deliveries=1)
    assert len(harness.executor.started) == 1
    harness.deliver(work("b", **older), deliveries=2)
    assert len(harness.executor.started) == 1
    (published,) = harness.publisher.settle()
    assert published.event.error is not None
    assert (published.event.error.type, published.event.error.retryable) == ("WorkerLost", True)
    assert "2 times" in published.event.error.message
    await turn()
    assert harness.channel.settled == [("ack", 2, False)]


@pytest.mark.parametrize("deliveries", [1, 3, 19])
@pytest.mark.parametrize("fence", [None, 7])
@pytest.mark.parametrize("checkpointed", [None, False, True])
async def test_what_is_delivered_again_is_given_back_unless_nobody_else_can_run_it(
    checkpointed: bool | None, fence: int | None, deliveries: int
) -> None:
    harness = RuntimeHarness()
    message = work("a", checkpointed=checkpointed, fence=fence, max_deliveries=20)
    harness.deliver(message, deliveries=deliveries)
    runs = checkpointed is None or (fence is not None and not checkpointed)
    assert len(harness.executor.started) == runs
    if not runs:
        (published,) = harness.publisher.settle()
        event = published.event
        assert (event.kind, event.deliveries) == (EventKind.RELEASED, deliveries)
        await turn()
        assert harness.channel.settled == [("ack", 1, False)]
        harness.deliver(message)
        assert len(harness.executor.started) == 1, "it was published again"


async def test_a_token_that_is_running_is_not_run_twice() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.deliver(work("a"))
    (execution,) = harness.executor.started
    execution.succeed()
    assert len(harness.publisher.settle()) == 1
    await turn()
    assert harness.channel.settled == [("ack", 2, True)]


async def test_a_token_that_waits_for_its_confirm_is_not_run_again() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.executor.started[0].succeed()
    harness.deliver(work("a"))
    assert len(harness.executor.started) == 1
    harness.publisher.settle()
    await turn()
    assert harness.channel.settled == [("ack", 2, True)]


async def test_a_token_ended_lately_is_answered_again_not_run() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("a"))
    harness.executor.started[0].succeed(0.25)
    (first,) = harness.publisher.settle()
    await turn()
    harness.deliver(work("a"), deliveries=1)
    assert len(harness.executor.started) == 1
    (again,) = harness.publisher.settle()
    assert again.body == first.body
    await turn()
    assert harness.channel.settled == [("ack", 1, False), ("ack", 2, False)]


async def test_after_a_lost_channel_running_attempts_report_and_queued_ones_are_dropped() -> None:
    harness = RuntimeHarness(slots=1)
    old = harness.channel
    harness.deliver(work("running"))
    harness.deliver(work("waiting"))
    harness.runtime.on_channel_lost()
    new = harness.open_channel()
    harness.deliver(work("running"), deliveries=1)
    harness.deliver(work("waiting"), deliveries=1)
    assert len(harness.executor.started) == 1, "the running one is joined, not run again"
    assert harness.reported == [("task.released", "waiting")]
    harness.executor.started[0].succeed()
    assert len(harness.executor.started) == 1
    harness.publisher.settle()
    await turn()
    assert new.settled == [("ack", 2, True)]
    assert old.settled in ([], [("ack", 1, False)]), "at most to the dead channel, which drops it"


async def test_deliveries_between_two_channels_are_ignored() -> None:
    harness = RuntimeHarness()
    late = harness.channel.deliver(work())
    harness.runtime.on_channel_lost()
    harness.runtime.on_delivery(late)
    assert harness.executor.started == []


# Malformed messages.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tq-version": 9}, "tq-version"),
        ({"tq-attempt": "one"}, "tq-attempt"),
        ({"tq-task": None}, "tq-task"),
        ({"tq-token": ""}, "tq-token"),
        ({"tq-namespace": "other"}, "TaskQueue other/q, this worker is of shop/q"),
        ({"tq-queue": "other"}, "TaskQueue shop/other, this worker is of shop/q"),
    ],
)
async def test_a_message_that_breaks_the_contract_is_dead_lettered_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    harness = RuntimeHarness()
    properties = work().properties()
    properties.headers.update({**change, "x-delivery-count": 1, "ratio": 1.5})
    harness.deliver(properties, b"body")
    assert harness.executor.started == []
    await turn()
    assert harness.channel.settled == [], "not before the dead queue has it"
    (message,) = harness.publisher.settle()
    assert (message.exchange, message.key, message.body) == ("taskqueue.dead", "shop.q", b"body")
    assert reason in message.properties.headers["tq-error"]
    assert "x-delivery-count" not in message.properties.headers
    message.properties.encode()  # a float header would not pass
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


@pytest.mark.parametrize("body", [b"not json", b"[1]", b""])
async def test_a_task_whose_body_is_not_an_object_is_dead_lettered(body: bytes) -> None:
    harness = RuntimeHarness()
    harness.deliver(work(body=body))
    assert [each.exchange for each in harness.publisher.settle()] == ["taskqueue.dead"]


# The prefetch.


def run_short(harness: RuntimeHarness, count: int) -> None:
    for number in range(count):
        harness.deliver(work(f"short-{number}"))
        harness.executor.started[-1].succeed(0.0)


async def test_short_runs_raise_the_prefetch_and_a_long_one_releases_the_queued() -> None:
    harness = RuntimeHarness(slots=1)
    assert harness.runtime.prefetch == 1
    run_short(harness, 2 * ENOUGH_RUNS)
    assert harness.runtime.prefetch == AHEAD
    harness.publisher.settle()
    harness.deliver(work("long"))
    harness.deliver(work("next"))
    harness.deliver(direct())
    await asyncio.sleep(STARTED_SECONDS + 0.1)
    assert harness.runtime.prefetch == 1
    assert harness.events == [EventKind.STARTED, EventKind.RELEASED]
    assert harness.publisher.published[1].event.token == "next"
    harness.executor.started[-1].succeed(1)
    assert harness.executor.started[-1].attempt.uid == "order-7", "direct ones stay: it would count"


async def test_what_was_on_its_way_when_the_prefetch_was_lowered_is_released_too() -> None:
    harness = RuntimeHarness(slots=1)
    run_short(harness, 2 * ENOUGH_RUNS)
    harness.publisher.settle()
    harness.deliver(work("long"))
    await asyncio.sleep(STARTED_SECONDS + 0.1)
    assert harness.runtime.prefetch == 1
    harness.deliver(work("late"))  # before the broker heard of the cancel
    assert harness.events == [EventKind.STARTED, EventKind.RELEASED]
    assert harness.publisher.published[1].event.token == "late"


async def test_a_redelivery_lowers_the_prefetch_and_runs_after_what_waits() -> None:
    harness = RuntimeHarness(slots=1)
    run_short(harness, 2 * ENOUGH_RUNS)
    harness.deliver(work("running"))
    harness.deliver(direct())
    harness.deliver(work("suspect", checkpointed=None), deliveries=1)
    assert harness.runtime.prefetch == 1
    harness.executor.started[-1].succeed()
    assert harness.executor.started[-1].attempt.uid == "order-7"
    harness.executor.started[-1].succeed()
    assert harness.executor.started[-1].attempt.uid == "uid-suspect"


async def test_a_released_token_may_come_back_before_the_release_is_confirmed() -> None:
    harness = RuntimeHarness(slots=1)
    run_short(harness, 2 * ENOUGH_RUNS)
    harness.deliver(work("long"))
    harness.deliver(work("next"))
    await asyncio.sleep(STARTED_SECONDS + 0.1)
    harness.executor.started[-1].succeed(1)
    harness.deliver(work("next"))
    assert harness.executor.started[-1].attempt.uid == "uid-next"
    harness.publisher.settle()
    await turn()
    second = 2 * ENOUGH_RUNS + 3
    assert all(tag != second for _, tag, _ in harness.channel.settled), "acknowledged without a run"


# The end.


async def test_a_drain_gives_back_what_waits_and_lets_the_running_end() -> None:
    harness = RuntimeHarness(slots=1)
    harness.deliver(work("running"))
    harness.deliver(work("waiting"))
    harness.deliver(direct())
    harness.runtime.begin_drain()
    assert harness.events == [EventKind.RELEASED]
    assert harness.channel.settled == [("nack", 3, True)]
    harness.deliver(work("on its way"))
    assert harness.events == [EventKind.RELEASED, EventKind.RELEASED]
    waiting = asyncio.create_task(harness.runtime.wait_until_idle())
    await turn()
    assert not waiting.done()
    harness.executor.started[0].succeed()
    await asyncio.wait_for(waiting, 1)
    assert harness.events[2:] == [EventKind.SUCCEEDED]
    harness.publisher.settle()
    await turn()
    assert harness.channel.settled[1:] == [("ack", 4, True)]
    assert harness.runtime.unacknowledged == 0


async def test_after_the_grace_period_the_running_are_released_and_cancelled() -> None:
    harness = RuntimeHarness(slots=2)
    harness.deliver(work("task"))
    harness.deliver(direct())
    harness.runtime.begin_drain()
    harness.runtime.release_running()
    assert harness.events == [EventKind.RELEASED]
    assert harness.channel.settled == [("nack", 2, True)]
    assert [each.cancelled for each in harness.executor.started] == [True, True]
    harness.executor.started[0].succeed()
    assert len(harness.publisher.published) == 1, "its late result does not count"
    await asyncio.wait_for(harness.runtime.wait_until_idle(), 1)


async def test_an_idle_worker_drains_at_once() -> None:
    harness = RuntimeHarness()
    harness.runtime.begin_drain()
    await asyncio.wait_for(harness.runtime.wait_until_idle(), 1)


async def test_a_time_out_ends_the_wait_of_a_drain() -> None:
    harness = RuntimeHarness()
    harness.deliver(work(timeout_seconds=5))
    harness.runtime.begin_drain()
    await asyncio.wait_for(harness.runtime.wait_until_idle(), 6)
    assert harness.runtime.stuck == 1


async def test_no_payload_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    harness = RuntimeHarness()
    harness.deliver(work(body=b'{"card": "4111"}'))
    harness.executor.started[0].done(raised(ValueError("bad"), 0.1))
    assert caplog.records
    assert all("4111" not in str(vars(record)) for record in caplog.records)
    assert payload(harness.publisher.published[0])["data"]["error"]["message"] == "bad"


async def test_an_attempt_that_cannot_be_started_has_failed_and_takes_nothing_from_others() -> None:
    harness = RuntimeHarness(slots=2)
    harness.deliver(work("k.1", timeout_seconds=30))
    start = harness.executor.start

    def refuse(attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> FakeExecution:
        raise RuntimeError("can't start new thread")

    harness.executor.start = refuse  # type: ignore[method-assign]
    harness.deliver(work("k.2"))
    harness.executor.start = start  # type: ignore[method-assign]
    await turn()
    (outcome,) = harness.publisher.published
    assert outcome.event.kind is EventKind.FAILED
    assert outcome.event.error is not None
    assert outcome.event.error.message == "it cannot be started: can't start new thread"
    assert harness.runtime.busy == 1
    await asyncio.sleep(31)
    assert harness.events[1:] == [EventKind.STARTED, EventKind.FAILED]


@pytest.mark.parametrize("problem", ["its properties cannot be read: odd", ""])
async def test_a_message_the_worker_cannot_take_is_dead_lettered_and_keeps_no_slot(
    monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def fail(properties: BasicProperties, body: bytes, *, exchange: str) -> WorkMessage:
        raise ZeroDivisionError("odd")

    harness = RuntimeHarness()
    with monkeypatch.context() as patch:
        patch.setattr(delivery_handler, "parse_work", fail)
        delivery = harness.channel.deliver(direct(), b"body")
        harness.runtime.on_delivery(replace(delivery, problem=problem))
    (message,) = harness.publisher.settle()
    assert (message.exchange, message.body) == ("taskqueue.dead", b"body")
    reason = (message.properties.headers or {})["tq-error"]
    assert reason == (problem or "the worker failed on it: ZeroDivisionError('odd')")
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]
    harness.deliver(work())
    assert len(harness.executor.started) == 1
