"""Completion events of Tasks and direct messages: CloudEvents on `EVENTS_EXCHANGE`, for anybody.

The operator makes one for each final status it has recorded and one for each outcome of a direct
message. An event may be published more than once, always with the same id, which depends on the
status (or the message) alone, so that listeners can drop repeats.

Nothing here does I/O. An event is made for every Task that ends: it refers to the status' result,
and copies nothing before `encode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from taskqueue.contract import cloudevents
from taskqueue.contract.names import EVENTS_EXCHANGE, ContractError, routing_key
from taskqueue.contract.outcome import EVENT_TYPES, AttemptEvent, EventKind
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.limits import PAYLOAD_BYTES, SHORT_STRING_BYTES
from taskqueue.model.origin import TaskOrigin
from taskqueue.model.task import AttemptRecord, Phase, Task, TaskState
from taskqueue.timestamps import to_rfc3339

#: The kind of event for each final phase.
_OUTCOMES: Mapping[Phase, EventKind] = {
    Phase.SUCCEEDED: EventKind.SUCCEEDED,
    Phase.FAILED: EventKind.FAILED,
    Phase.CANCELLED: EventKind.CANCELLED,
}
#: How a direct message can end.
_DIRECT: Mapping[EventKind, Phase] = {
    EventKind.SUCCEEDED: Phase.SUCCEEDED,
    EventKind.FAILED: Phase.FAILED,
}
#: Reasons that only summarize: the error itself is in the last attempt.
_SUMMARIES = frozenset({"RetriesExhausted", "NonRetryable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEvent:
    """The completion of a Task or of a direct message.

    Attributes:
        id: the same whenever the same completion is published.
        kind: SUCCEEDED, FAILED or CANCELLED.
        namespace: of the TaskQueue.
        queue: name of the TaskQueue.
        subject: ``namespace/task``; ``namespace/queue`` for a direct message.
        time: when it ended, RFC 3339.
        correlation_id: the Task's uid, or what the publisher of a direct message set, or None.
        data: JSON.
    """

    id: str
    kind: EventKind
    namespace: str
    queue: str
    subject: str
    time: str
    correlation_id: str | None
    data: Mapping[str, Any]

    @property
    def routing_key(self) -> str:
        """The key on the events exchange: ``<namespace>.<queue>.<event>``."""
        return f"{routing_key(self.namespace, self.queue)}.{self.kind.value}"

    def encode(self) -> bytes:
        """Return the event as structured JSON."""
        return cloudevents.encode(
            id=self.id,
            type=EVENT_TYPES[self.kind],
            source=f"/namespaces/{self.namespace}/taskqueues/{self.queue}",
            subject=self.subject,
            time=self.time,
            queue=self.queue,
            data=self.data,
        )

    def message(self) -> OutgoingMessage:
        """Return the event as a message for the events exchange."""
        return OutgoingMessage(
            exchange=EVENTS_EXCHANGE,
            key=self.routing_key,
            body=self.encode(),
            content_type=cloudevents.CONTENT_TYPE,
            correlation_id=self.correlation_id,
        )


def task_completion(
    task: Task, status: TaskState, record: Mapping[str, Any] | None = None
) -> CompletionEvent:
    """Return the completion event of a Task's final status.

    Args:
        task: that has ended.
        status: how.
        record: what an archive keeps besides, of `archive_record`; None: there is no archive.

    Raises:
        ValueError: the status is not final.
    """
    kind = _OUTCOMES.get(status.phase)
    if kind is None or status.completion_time is None:
        raise ValueError(
            f"{task.path} is {status.phase}, completed at {status.completion_time}: "
            "only a final status has a completion event"
        )
    completed = to_rfc3339(status.completion_time)
    data: dict[str, Any] = {
        "uid": task.uid,
        "phase": status.phase.value,
        "reason": status.reason,
        "message": status.message,
        "attempts": status.attempts,
        "completionTime": completed,
        "worker": status.worker,
    }
    if status.start_time is not None:
        data["startTime"] = to_rfc3339(status.start_time)
    if status.result is not None:
        data["result"] = status.result
    if status.result_ref is not None:
        data["resultRef"] = status.result_ref.fields()
    if kind is EventKind.FAILED:
        data["error"] = _error(status)
    if task.spec.notification_names is not None:
        data["notificationNames"] = task.spec.notification_names
    if record is not None:
        data["record"] = record
    return CompletionEvent(
        id=f"{task.uid}.{status.attempts}",
        kind=kind,
        namespace=task.namespace,
        queue=task.spec.queue,
        subject=task.path,
        time=completed,
        correlation_id=task.uid,
        data=data,
    )


def archive_record(
    task: Task, status: TaskState, origin: TaskOrigin, payload: bytes | None
) -> dict[str, Any]:
    """Return what an archive keeps of a Task that its completion event does not have anyway.

    Args:
        task: that has ended.
        status: how.
        origin: where it came from.
        payload: a JSON object in UTF-8, of any size; None: it is not kept, or not known.
    """
    record: dict[str, Any] = {
        "handler": task.spec.handler,
        "labels": origin.labels,
        "creationTime": to_rfc3339(task.created) if task.created else None,
        "history": [_attempt(one) for one in status.history],
        "submittedBy": origin.submitted_by,
        "cancelledBy": origin.cancelled_by,
        "retryOf": origin.retry_of,
    }
    if payload is not None and len(payload) <= PAYLOAD_BYTES:
        record["payload"] = orjson.Fragment(payload)
    return record


def _attempt(one: AttemptRecord) -> dict[str, Any]:
    """Return an attempt as the status has it: without what is empty."""
    fields: dict[str, Any] = {
        "attempt": one.attempt,
        "startTime": to_rfc3339(one.start_time),
        "finishTime": to_rfc3339(one.finish_time),
        "outcome": one.outcome,
    }
    texts = {"worker": one.worker, "reason": one.reason, "message": one.message}
    return fields | {name: text for name, text in texts.items() if text}


def direct_completion(event: AttemptEvent, *, arrived_with: str, now: float) -> CompletionEvent:
    """Return the completion event of a direct message's outcome, with the id the worker gave it.

    Args:
        event: what the worker reported.
        arrived_with: the routing key it came with. The broker lets a worker use the keys of its
            own queue only, and nothing else proves whom an event without a token speaks for.
        now: by the operator's clock, seconds since the epoch.

    Raises:
        ContractError: it is not an outcome of a direct message, or of another queue's.
    """
    phase = _DIRECT.get(event.kind)
    if phase is None or not event.is_direct:
        raise ContractError(
            f"an event {event.kind.value} is not an outcome of a direct message: those are "
            "task.succeeded and task.failed without a token"
        )
    if event.routing_key != arrived_with:
        raise ContractError(
            f"the outcome of a direct message says {event.routing_key} and came with routing key "
            f"{arrived_with}: they must be the same"
        )
    if not event.id:
        raise ContractError("event field id is missing: listeners recognize repeats by it")
    correlation_id = event.correlation_id
    if len(correlation_id.encode()) > SHORT_STRING_BYTES:
        raise ContractError(
            f"event field data.correlationId has more than {SHORT_STRING_BYTES} bytes: no AMQP "
            "message can have set it"
        )
    data: dict[str, Any] = {
        "correlationId": correlation_id,
        "phase": phase.value,
        "attempts": event.attempt,
        "worker": event.worker,
        "seconds": event.seconds or 0.0,
    }
    if event.result is not None:
        data["result"] = event.result
    if phase is Phase.FAILED:
        error = event.error
        data["error"] = {
            "type": error.type if error else "Error",
            "message": error.message if error else "the worker gave no reason",
        }
    return CompletionEvent(
        id=event.id,
        kind=event.kind,
        namespace=event.namespace,
        queue=event.queue,
        subject=f"{event.namespace}/{event.queue}",
        time=to_rfc3339(now),
        correlation_id=correlation_id or None,
        data=data,
    )


def _error(status: TaskState) -> dict[str, str]:
    if status.reason in _SUMMARIES and status.history:
        last = status.history[-1]
        return {"type": last.reason, "message": last.message}
    return {"type": status.reason, "message": status.message}
