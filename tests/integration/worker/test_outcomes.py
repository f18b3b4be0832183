"""A real worker on a real broker: what becomes of each kind of message."""

from __future__ import annotations

import pytest
from pika.spec import BasicProperties

from taskqueue.contract.outcome import EventError, EventKind
from tests.integration.worker.harness import DEAD_QUEUE, QUEUE, Harness

pytestmark = pytest.mark.broker


async def test_success_carries_the_result_and_empties_the_queue(harness: Harness) -> None:
    await harness.ready_worker()
    token = await harness.publish("echo", {"width": 3}, task="resize-1", uid="u-1", attempt=2)
    event = await harness.outcome(token)
    assert event.kind is EventKind.SUCCEEDED
    assert event.result == {
        "payload": {"width": 3},
        "attempt": 2,
        "task": "shop/resize-1",
        "uid": "u-1",
    }
    assert (event.namespace, event.queue, event.task, event.uid) == ("shop", "q", "resize-1", "u-1")
    assert (event.attempt, event.worker) == (2, "pod-1")
    assert event.seconds is not None
    assert await harness.ready() == 0


@pytest.mark.parametrize(
    ("handler", "error", "after"),
    [
        ("broken", EventError(type="ValueError", message="the picture has no pixels"), None),
        ("later", EventError(type="Retry", message="not ready"), 12.5),
        ("never", EventError(type="NotFound", message="no such customer", retryable=False), None),
    ],
)
async def test_what_a_handler_raises_is_told(
    harness: Harness, handler: str, error: EventError, after: float | None
) -> None:
    await harness.ready_worker()
    event = await harness.outcome(await harness.publish(handler))
    assert (event.kind, event.error) == (EventKind.FAILED, error)
    assert event.retry_after_seconds == after


@pytest.mark.parametrize(
    ("handler", "kind", "retryable", "words"),
    [
        ("resize", "UnknownHandler", True, "registered: async_hold, broken,"),
        ("too_much", "ResultTooLarge", False, "the limit is 16384"),
    ],
)
async def test_failures_of_the_workers_own(
    harness: Harness, handler: str, kind: str, retryable: bool, words: str
) -> None:
    await harness.ready_worker()
    event = await harness.outcome(await harness.publish(handler))
    assert event.error is not None
    assert (event.error.type, event.error.retryable) == (kind, retryable)
    assert words in event.error.message


async def test_a_thread_outlives_its_time_out_and_holds_the_slot_until_the_handler_returns(
    harness: Harness,
) -> None:
    worker, gate = await harness.ready_worker(slots=1), harness.gate()
    token = await harness.publish("thread_hold", gate.payload, timeout_seconds=1)
    event = await harness.outcome(token)
    assert event.error is not None
    assert event.error.type == "Timeout"
    assert harness.reported(token) == [EventKind.STARTED, EventKind.FAILED]
    second = await harness.publish("noop")
    await worker.logged("task.stuck")
    assert harness.reported(second) == []
    gate.open()
    await worker.logged("task.ended_late")
    assert (await harness.outcome(second)).kind is EventKind.SUCCEEDED
    assert harness.reported(token) == [EventKind.STARTED, EventKind.FAILED]


async def test_an_async_time_out_frees_the_slot(harness: Harness) -> None:
    await harness.ready_worker(slots=1)
    token = await harness.publish("async_hold", harness.gate().payload, timeout_seconds=1)
    second = await harness.publish("noop")
    event = await harness.outcome(token)
    assert event.error is not None
    assert event.error.type == "Timeout"
    assert (await harness.outcome(second)).kind is EventKind.SUCCEEDED


async def test_a_message_that_breaks_the_contract_is_kept_for_people(harness: Harness) -> None:
    await harness.ready_worker()
    await harness.send(
        BasicProperties(headers={"tq-token": "k.1", "tq-version": 7, "mine": "kept"}, type="echo"),
        b"what?",
    )
    message = await harness.dead_letter()
    assert message.body == b"what?"
    assert "tq-version is 7" in message.properties.headers["tq-error"]
    assert message.properties.headers["mine"] == "kept"
    assert message.exchange == "taskqueue.dead"
    await harness.until_ready(0, QUEUE)


async def test_a_direct_message_is_run_and_gone(harness: Harness) -> None:
    await harness.ready_worker()
    gate = harness.gate()
    body = f'{{"runs": "{gate.runs}"}}'.encode()
    await harness.send(BasicProperties(type="echo"), body)
    await harness.send(BasicProperties(), body)  # the default handler
    await gate.wait_until_started(2)
    await harness.until_ready(0, QUEUE)
    assert await harness.ready(DEAD_QUEUE) == 0


async def test_the_end_of_a_direct_message_is_told_with_its_correlation_id(
    harness: Harness,
) -> None:
    await harness.ready_worker()
    await harness.send(BasicProperties(type="echo", correlation_id="order-7"), b'{"width": 3}')
    event = await harness.direct_outcome("order-7")
    assert (event.kind, event.task, event.token, event.uid) == (EventKind.SUCCEEDED, "q", "", "")
    assert event.result is not None
    assert event.result["payload"] == {"width": 3}
    await harness.until_ready(0, QUEUE)


async def test_a_failing_direct_message_is_tried_thrice_and_kept_for_people(
    harness: Harness,
) -> None:
    await harness.ready_worker()
    gate = harness.gate()
    await harness.send(
        BasicProperties(type="broken", correlation_id="order-7"),
        f'{{"runs": "{gate.runs}"}}'.encode(),
    )
    message = await harness.dead_letter()
    assert len(gate.pids) == 3
    ends = [event for event in harness.events if event.correlation_id == "order-7"]
    assert [(event.kind, event.attempt) for event in ends] == [(EventKind.FAILED, 3)]
    assert message.properties.headers["tq-error"] == "ValueError: the picture has no pixels"
    assert message.properties.correlation_id == "order-7"
    await harness.until_ready(0, QUEUE)


async def test_many_tasks_end_once_each_with_the_prefetch_raised(harness: Harness) -> None:
    worker = await harness.ready_worker(slots=2, TASKQUEUE_LOG_LEVEL="DEBUG")
    tokens = [await harness.publish("noop") for _ in range(400)]
    for token in tokens:
        assert (await harness.outcome(token)).kind is EventKind.SUCCEEDED
    raised = await worker.logged("prefetch.changed")
    assert raised["prefetch"] == 64
    assert all(harness.reported(token) == [EventKind.SUCCEEDED] for token in tokens)
    await harness.until_ready(0)


async def test_a_raised_prefetch_costs_no_message_a_delivery(harness: Harness) -> None:
    for number in range(400):
        await harness.send(BasicProperties(type="noop", correlation_id=f"o-{number}"), b"{}")
    worker = await harness.ready_worker(slots=16, TASKQUEUE_LOG_LEVEL="DEBUG")
    for number in range(400):
        await harness.direct_outcome(f"o-{number}")
    assert (await worker.logged("prefetch.changed"))["prefetch"] == 64
    assert {event.attempt for event in harness.events} == {1}
