"""From delivery to acknowledgement, with the broker and the handlers in the test's hands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.worker.outcome import raised
from taskqueue.worker.prefetch import AHEAD, ENOUGH_RUNS
from taskqueue.worker.runtime import STARTED_SECONDS
from taskqueue.worker.sdk import Fail
from tests.unit.worker.fakes import payload, turn, work
from tests.unit.worker.harness import Bench, direct

pytestmark = pytest.mark.looptime


# Tasks.


async def test_a_delivery_runs_is_told_and_only_then_acknowledged() -> None:
    bench = Bench()
    bench.deliver(work("k.1", attempt=2, epoch=5))
    (execution,) = bench.executor.started
    attempt = execution.attempt
    assert (attempt.handler, attempt.payload) == ("resize", {"width": 10})
    assert (attempt.task, attempt.uid) == ("shop/task-k.1", "uid-k.1")
    assert (attempt.attempt, attempt.max_attempts, attempt.timeout_seconds) == (2, 3, 30)
    execution.succeed(0.25, {"pages": 1})
    await turn()
    assert bench.channel.settled == []
    (told,) = bench.publisher.settle()
    event = told.event
    assert event.kind is EventKind.SUCCEEDED
    assert told.key == "shop.q.task.succeeded"
    assert (event.token, event.attempt, event.epoch) == ("k.1", 2, 5)
    assert (event.seconds, event.result, event.worker) == (0.25, {"pages": 1}, "pod-1")
    await turn()
    assert bench.channel.settled == [("ack", 1, False)]


async def test_no_more_run_than_there_are_slots_and_the_rest_in_order() -> None:
    bench = Bench(slots=2)
    for token in ("a", "b", "c", "d"):
        bench.deliver(work(token))
    assert [each.attempt.uid for each in bench.executor.started] == ["uid-a", "uid-b"]
    bench.executor.started[1].succeed()
    bench.executor.started[0].succeed()
    assert [each.attempt.uid for each in bench.executor.started[2:]] == ["uid-c", "uid-d"]


async def test_a_failure_carries_type_message_and_whether_to_retry() -> None:
    bench = Bench()
    bench.deliver(work())
    bench.executor.started[0].done(raised(Fail("gone", type="NotFound"), 0.1))
    (told,) = bench.publisher.settle()
    assert told.event.kind is EventKind.FAILED
    assert told.event.error is not None
    assert (told.event.error.type, told.event.error.retryable) == ("NotFound", False)


async def test_an_unconfirmed_outcome_keeps_the_delivery_until_it_is_confirmed() -> None:
    bench = Bench()
    bench.deliver(work())
    bench.executor.started[0].succeed()
    bench.publisher.settle(Settled.RETURNED, "312 NO_ROUTE")
    await asyncio.sleep(30)
    assert bench.channel.settled == []
    bench.publisher.settle()
    await turn()
    assert bench.channel.settled == [("ack", 1, False)]


async def test_a_long_attempt_is_announced_once_and_again_after_a_reconnect() -> None:
    bench = Bench()
    bench.deliver(work())
    await asyncio.sleep(STARTED_SECONDS - 0.01)
    assert bench.events == []
    await asyncio.sleep(5)
    assert bench.events == [EventKind.STARTED]
    bench.runtime.republish()
    assert bench.events == [EventKind.STARTED, EventKind.STARTED]


async def test_a_short_attempt_is_not_announced() -> None:
    bench = Bench()
    bench.deliver(work())
    await asyncio.sleep(STARTED_SECONDS / 2)
    bench.executor.started[0].succeed()
    await asyncio.sleep(5)
    assert bench.events == [EventKind.SUCCEEDED]


async def test_a_time_out_is_told_in_time_and_keeps_the_slot_until_the_handler_returns() -> None:
    bench = Bench(slots=1)
    bench.deliver(work("a", timeout_seconds=3))
    bench.deliver(work("b"))
    await asyncio.sleep(2.99)
    assert bench.events == [EventKind.STARTED]
    await asyncio.sleep(0.02)
    assert bench.events == [EventKind.STARTED, EventKind.FAILED]
    error = bench.publisher.published[1].event.error
    assert error is not None
    assert (error.type, error.retryable) == ("Timeout", True)
    assert "3 s" in error.message
    (execution,) = bench.executor.started
    assert execution.cancelled
    assert (bench.runtime.busy, bench.runtime.stuck) == (1, 1)
    execution.succeed(10)
    assert len(bench.publisher.published) == 2, "its late result does not count"
    assert len(bench.executor.started) == 2, "its slot is free again"
    assert bench.runtime.stuck == 0


async def test_a_handler_that_outlives_its_time_out_is_called_stuck_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.deliver(work("ends", timeout_seconds=3))
    bench.deliver(work("stays", timeout_seconds=3))
    await asyncio.sleep(3.1)
    bench.executor.started[0].succeed()
    await asyncio.sleep(60)
    stuck = [record for record in caplog.records if record.getMessage() == "task.stuck"]
    assert [vars(record)["fields"]["task"] for record in stuck] == ["task-stays"]


async def test_an_attempt_delivered_too_often_is_not_run() -> None:
    bench = Bench()
    bench.deliver(work("a", max_deliveries=2), deliveries=1)
    assert len(bench.executor.started) == 1
    bench.deliver(work("b", max_deliveries=2), deliveries=2)
    assert len(bench.executor.started) == 1
    (told,) = bench.publisher.settle()
    assert told.event.error is not None
    assert (told.event.error.type, told.event.error.retryable) == ("WorkerLost", True)
    assert "2 times" in told.event.error.message
    await turn()
    assert bench.channel.settled == [("ack", 2, False)]


async def test_a_token_that_is_running_is_not_run_twice() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.deliver(work("a"))
    (execution,) = bench.executor.started
    execution.succeed()
    assert len(bench.publisher.settle()) == 1
    await turn()
    assert bench.channel.settled == [("ack", 2, True)]


async def test_a_token_that_waits_for_its_confirm_is_not_run_again() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.executor.started[0].succeed()
    bench.deliver(work("a"))
    assert len(bench.executor.started) == 1
    bench.publisher.settle()
    await turn()
    assert bench.channel.settled == [("ack", 2, True)]


async def test_a_token_ended_lately_is_answered_again_not_run() -> None:
    bench = Bench()
    bench.deliver(work("a"))
    bench.executor.started[0].succeed(0.25)
    (first,) = bench.publisher.settle()
    await turn()
    bench.deliver(work("a"), deliveries=1)
    assert len(bench.executor.started) == 1
    (again,) = bench.publisher.settle()
    assert again.body == first.body
    await turn()
    assert bench.channel.settled == [("ack", 1, False), ("ack", 2, False)]


async def test_after_a_lost_channel_what_ran_is_told_and_what_waited_is_forgotten() -> None:
    bench = Bench(slots=1)
    old = bench.channel
    bench.deliver(work("running"))
    bench.deliver(work("waiting"))
    bench.runtime.channel_lost()
    new = bench.open_channel()
    bench.deliver(work("running"), deliveries=1)
    bench.deliver(work("waiting"), deliveries=1)
    assert len(bench.executor.started) == 1, "the running one is joined, not run again"
    bench.executor.started[0].succeed()
    assert [each.attempt.uid for each in bench.executor.started] == ["uid-running", "uid-waiting"]
    bench.publisher.settle()
    await turn()
    assert new.settled == [("ack", 1, False)]
    assert old.settled in ([], [("ack", 1, False)]), "at most to the dead channel, which drops it"


async def test_nothing_is_taken_between_two_channels() -> None:
    bench = Bench()
    late = bench.channel.deliver(work())
    bench.runtime.channel_lost()
    bench.runtime.delivered(late)
    assert bench.executor.started == []


# Malformed messages.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tq-version": 9}, "tq-version"),
        ({"tq-attempt": "one"}, "tq-attempt"),
        ({"tq-task": None}, "tq-task"),
    ],
)
async def test_a_message_that_breaks_the_contract_is_buried_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    bench = Bench()
    properties = work().properties()
    properties.headers.update({**change, "x-delivery-count": 1, "ratio": 1.5})
    bench.deliver(properties, b"body")
    assert bench.executor.started == []
    await turn()
    assert bench.channel.settled == [], "not before the dead queue has it"
    (letter,) = bench.publisher.settle()
    assert (letter.exchange, letter.key, letter.body) == ("taskqueue.dead", "shop.q", b"body")
    assert reason in letter.properties.headers["tq-error"]
    assert "x-delivery-count" not in letter.properties.headers
    letter.properties.encode()  # a float header would not pass
    await turn()
    assert bench.channel.settled == [("ack", 1, False)]


@pytest.mark.parametrize("body", [b"not json", b"[1]", b""])
async def test_a_task_whose_body_is_no_object_is_buried(body: bytes) -> None:
    bench = Bench()
    bench.deliver(work(body=body))
    assert [each.exchange for each in bench.publisher.settle()] == ["taskqueue.dead"]


# The prefetch.


def run_short(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.deliver(work(f"short-{number}"))
        bench.executor.started[-1].succeed(0.0)


async def test_short_runs_raise_the_prefetch_and_a_long_one_gives_back_what_waits() -> None:
    bench = Bench(slots=1)
    assert bench.runtime.prefetch == 1
    run_short(bench, 2 * ENOUGH_RUNS)
    assert bench.runtime.prefetch == AHEAD
    bench.publisher.settle()
    bench.deliver(work("long"))
    bench.deliver(work("next"))
    bench.deliver(direct())
    await asyncio.sleep(STARTED_SECONDS + 0.1)
    assert bench.runtime.prefetch == 1
    assert bench.events == [EventKind.STARTED, EventKind.RELEASED]
    assert bench.publisher.published[1].event.token == "next"
    bench.executor.started[-1].succeed(1)
    assert bench.executor.started[-1].attempt.uid == "order-7", "direct ones stay: it would count"


async def test_what_was_on_its_way_when_the_prefetch_was_lowered_is_given_back_too() -> None:
    bench = Bench(slots=1)
    run_short(bench, 2 * ENOUGH_RUNS)
    bench.publisher.settle()
    bench.deliver(work("long"))
    await asyncio.sleep(STARTED_SECONDS + 0.1)
    assert bench.runtime.prefetch == 1
    bench.deliver(work("late"))  # before the broker heard of the cancel
    assert bench.events == [EventKind.STARTED, EventKind.RELEASED]
    assert bench.publisher.published[1].event.token == "late"


async def test_a_redelivery_lowers_the_prefetch_and_runs_after_what_waits() -> None:
    bench = Bench(slots=1)
    run_short(bench, 2 * ENOUGH_RUNS)
    bench.deliver(work("running"))
    bench.deliver(direct())
    bench.deliver(work("suspect"), deliveries=1)
    assert bench.runtime.prefetch == 1
    bench.executor.started[-1].succeed()
    assert bench.executor.started[-1].attempt.uid == "order-7"
    bench.executor.started[-1].succeed()
    assert bench.executor.started[-1].attempt.uid == "uid-suspect"


async def test_a_released_token_may_come_back_before_the_release_is_confirmed() -> None:
    bench = Bench(slots=1)
    run_short(bench, 2 * ENOUGH_RUNS)
    bench.deliver(work("long"))
    bench.deliver(work("next"))
    await asyncio.sleep(STARTED_SECONDS + 0.1)
    bench.executor.started[-1].succeed(1)
    bench.deliver(work("next"))
    assert bench.executor.started[-1].attempt.uid == "uid-next"
    bench.publisher.settle()
    await turn()
    second = 2 * ENOUGH_RUNS + 3
    assert all(tag != second for _, tag, _ in bench.channel.settled), "acknowledged without a run"


# The end.


async def test_a_drain_gives_back_what_waits_and_lets_the_running_end() -> None:
    bench = Bench(slots=1)
    bench.deliver(work("running"))
    bench.deliver(work("waiting"))
    bench.deliver(direct())
    bench.runtime.begin_drain()
    assert bench.events == [EventKind.RELEASED]
    assert bench.channel.settled == [("nack", 3, True)]
    bench.deliver(work("on its way"))
    assert bench.events == [EventKind.RELEASED, EventKind.RELEASED]
    waiting = asyncio.create_task(bench.runtime.idle())
    await turn()
    assert not waiting.done()
    bench.executor.started[0].succeed()
    await asyncio.wait_for(waiting, 1)
    assert bench.events[2:] == [EventKind.SUCCEEDED]
    bench.publisher.settle()
    await turn()
    assert bench.channel.settled[1:] == [("ack", 4, True)]
    assert bench.runtime.in_hand() == 0


async def test_after_the_grace_period_the_running_are_released_and_cancelled() -> None:
    bench = Bench(slots=2)
    bench.deliver(work("task"))
    bench.deliver(direct())
    bench.runtime.begin_drain()
    bench.runtime.release_running()
    assert bench.events == [EventKind.RELEASED]
    assert bench.channel.settled == [("nack", 2, True)]
    assert [each.cancelled for each in bench.executor.started] == [True, True]
    bench.executor.started[0].succeed()
    assert len(bench.publisher.published) == 1, "its late result does not count"
    await asyncio.wait_for(bench.runtime.idle(), 1)


async def test_an_idle_worker_drains_at_once() -> None:
    bench = Bench()
    bench.runtime.begin_drain()
    await asyncio.wait_for(bench.runtime.idle(), 1)


async def test_a_time_out_ends_the_wait_of_a_drain() -> None:
    bench = Bench()
    bench.deliver(work(timeout_seconds=5))
    bench.runtime.begin_drain()
    await asyncio.wait_for(bench.runtime.idle(), 6)
    assert bench.runtime.stuck == 1


async def test_no_payload_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    bench = Bench()
    bench.deliver(work(body=b'{"card": "4111"}'))
    bench.executor.started[0].done(raised(ValueError("bad"), 0.1))
    assert caplog.records
    assert all("4111" not in str(vars(record)) for record in caplog.records)
    assert payload(bench.publisher.published[0])["data"]["error"]["message"] == "bad"
