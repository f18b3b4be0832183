"""What spectators are told: the same event for the same end, and nothing that is not proven."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from taskqueue.contract.completion import CompletionEvent, direct_completion, task_completion
from taskqueue.contract.names import ContractError
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind
from taskqueue.model.task import AttemptRecord, Phase, Task, TaskSpec, TaskState

NOW = 1_700_000_000.25
TASK = Task(
    namespace="shop",
    name="resize-1",
    uid="0b1c",
    generation=1,
    created=0.0,
    spec=TaskSpec(queue="images", handler="resize"),
)
SUCCEEDED = TaskState(
    phase=Phase.SUCCEEDED,
    attempts=2,
    start_time=NOW - 1.5,
    completion_time=NOW,
    worker="pod-1",
    result={"width": 640, "nothing": None},
)
FAILED = TaskState(
    phase=Phase.FAILED,
    reason="RetriesExhausted",
    message="attempt 2 of 2: Boom: it broke",
    attempts=2,
    history=(
        AttemptRecord(1, "Failed", NOW - 2, NOW - 2, "pod-1", "First", "no"),
        AttemptRecord(2, "Failed", NOW - 1, NOW, "pod-1", "Boom", "it broke"),
    ),
    completion_time=NOW,
    worker="pod-1",
)
DIRECT = AttemptEvent(
    kind=EventKind.SUCCEEDED,
    namespace="shop",
    queue="images",
    task="images",
    uid="",
    token="",
    attempt=1,
    epoch=0,
    worker="pod-1",
    seconds=0.5,
    result={"text": "done"},
    correlation_id="order-3",
    id="message-7",
)


def wire(event: CompletionEvent) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(event.encode())
    return body


def published(status: TaskState) -> dict[str, Any]:
    data: dict[str, Any] = wire(task_completion(TASK, status))["data"]
    return data


def direct(event: AttemptEvent = DIRECT) -> CompletionEvent:
    return direct_completion(event, arrived_with=event.routing_key, now=NOW)


def test_a_success_is_told_with_its_result() -> None:
    assert wire(task_completion(TASK, SUCCEEDED)) == {
        "specversion": "1.0",
        "id": "0b1c.2",
        "type": "dev.taskqueue.task.succeeded.v1",
        "source": "/namespaces/shop/taskqueues/images",
        "subject": "shop/resize-1",
        "time": "2023-11-14T22:13:20.250Z",
        "taskqueue": "images",
        "datacontenttype": "application/json",
        "data": {
            "uid": "0b1c",
            "phase": "Succeeded",
            "reason": "",
            "message": "",
            "attempts": 2,
            "startTime": "2023-11-14T22:13:18.750Z",
            "completionTime": "2023-11-14T22:13:20.250Z",
            "worker": "pod-1",
            "result": {"width": 640, "nothing": None},
        },
    }


def test_the_message_goes_to_the_events_exchange_under_the_queues_key() -> None:
    message = task_completion(TASK, SUCCEEDED).message()
    assert (message.exchange, message.key) == ("taskqueue.events", "shop.images.task.succeeded")
    first, second = message.properties(), message.properties()
    assert first.message_id != second.message_id
    assert first.correlation_id == "0b1c"
    assert first.content_type == "application/cloudevents+json"
    assert first.delivery_mode == 2


@pytest.mark.parametrize(
    ("phase", "event"),
    [(Phase.SUCCEEDED, "succeeded"), (Phase.FAILED, "failed"), (Phase.CANCELLED, "cancelled")],
)
def test_the_final_phase_names_the_event(phase: Phase, event: str) -> None:
    told = task_completion(TASK, replace(SUCCEEDED, phase=phase))
    assert told.routing_key == f"shop.images.task.{event}"
    assert wire(told)["type"] == f"dev.taskqueue.task.{event}.v1"


def test_the_same_end_makes_the_same_event() -> None:
    assert task_completion(TASK, FAILED).encode() == task_completion(TASK, FAILED).encode()


def test_a_failure_names_the_last_attempts_error() -> None:
    data = published(FAILED)
    assert data["error"] == {"type": "Boom", "message": "it broke"}
    assert (data["reason"], data["message"]) == (FAILED.reason, FAILED.message)
    assert "result" not in data
    assert "startTime" not in data


@pytest.mark.parametrize("reason", ["DeadlineExceeded", "DependencyFailed", "Invalid"])
def test_an_end_that_is_no_attempts_own_is_the_error_itself(reason: str) -> None:
    data = published(replace(FAILED, reason=reason, message="why"))
    assert data["error"] == {"type": reason, "message": "why"}


def test_a_failure_recorded_in_short_has_an_error_still() -> None:
    data = published(replace(FAILED, history=(), message="recorded in short"))
    assert data["error"] == {"type": "RetriesExhausted", "message": "recorded in short"}


def test_a_cancelled_task_has_no_error() -> None:
    assert "error" not in published(replace(FAILED, phase=Phase.CANCELLED, reason="Cancelled"))


@pytest.mark.parametrize(
    "status",
    [replace(SUCCEEDED, phase=Phase.RUNNING), replace(SUCCEEDED, completion_time=None)],
)
def test_what_is_not_final_is_not_told(status: TaskState) -> None:
    with pytest.raises(ValueError, match="shop/resize-1"):
        task_completion(TASK, status)


def test_a_direct_messages_outcome_carries_its_correlation_id() -> None:
    event = direct()
    assert event.message().properties().correlation_id == "order-3"
    body = wire(event)
    assert (body["id"], body["subject"]) == ("message-7", "shop/images")
    assert body["time"] == "2023-11-14T22:13:20.250Z"
    assert body["data"] == {
        "correlationId": "order-3",
        "phase": "Succeeded",
        "attempts": 1,
        "worker": "pod-1",
        "seconds": 0.5,
        "result": {"text": "done"},
    }


def test_a_direct_messages_failure_has_an_error() -> None:
    event = replace(
        DIRECT, kind=EventKind.FAILED, result=None, error=EventError(type="Boom", message="no")
    )
    body = wire(direct(event))
    assert body["type"] == "dev.taskqueue.task.failed.v1"
    assert body["data"]["error"] == {"type": "Boom", "message": "no"}
    unexplained = wire(direct(replace(event, error=None)))
    assert unexplained["data"]["error"]["type"] == "Error"


def test_a_direct_message_need_not_ask_for_an_answer() -> None:
    event = direct(replace(DIRECT, correlation_id=""))
    assert event.message().properties().correlation_id is None
    assert wire(event)["data"]["correlationId"] == ""


def test_an_outcome_without_an_id_is_refused() -> None:
    with pytest.raises(ContractError, match="id is missing"):
        direct(replace(DIRECT, id=""))


def test_nobody_speaks_for_another_queue() -> None:
    with pytest.raises(ContractError, match="must be the same"):
        direct_completion(DIRECT, arrived_with="shop.other.task.succeeded", now=NOW)


@pytest.mark.parametrize("changed", [{"token": "k.1"}, {"kind": EventKind.RELEASED}])
def test_only_a_direct_messages_end_is_told(changed: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="not an outcome of a direct message"):
        direct(replace(DIRECT, **changed))


def test_a_correlation_id_that_cannot_be_published_is_refused() -> None:
    assert direct(replace(DIRECT, correlation_id="é" * 127)).correlation_id
    with pytest.raises(ContractError, match="correlationId"):
        direct(replace(DIRECT, correlation_id="é" * 128))
