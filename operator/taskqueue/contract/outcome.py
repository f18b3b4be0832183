"""Events of attempts, from workers to the operator, as CloudEvents.

All of them are an `AttemptEvent`; `encode` and `decode` are the wire format. Workers report
durations, never times of day: only the operator's clock is trusted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from taskqueue import exact_json
from taskqueue.contract import cloudevents
from taskqueue.contract.cloudevents import CloudEvent
from taskqueue.contract.names import ContractError, routing_key
from taskqueue.contract.text import cut
from taskqueue.contract.work import AttemptClaim
from taskqueue.jsonable import INTEGER_END
from taskqueue.limits import (
    CHECKPOINT_BYTES,
    ERROR_MESSAGE_BYTES,
    EVENT_BYTES,
    MEDIA_TYPE_LENGTH,
    MEDIA_TYPE_PATTERN,
    OBJECT_NAME_LENGTH,
    PARSED_EVENT_BYTES,
    STATUS_OUTPUT_BYTES,
    STATUS_REASON_LENGTH,
    STORED_RESULT_BYTES,
)

#: Longest duration accepted, in seconds.
LONGEST_SECONDS = 1e7


#: Begins the types of errors that a worker finds itself, on the wire.
RESERVED_PREFIX = "taskqueue."

#: Reserved types that mean something to the operator, as older workers write them: without the
#: prefix, and without a mark of what is an application's.
_BARE_RESERVED = frozenset({"UnknownHandler", "Timeout", "WorkerLost"})


_MEDIA_TYPE = re.compile(MEDIA_TYPE_PATTERN)
_SHA256 = re.compile("[0-9a-f]{64}")


class EventKind(StrEnum):
    """What happened to the attempt."""

    STARTED = "task.started"
    SUCCEEDED = "task.succeeded"
    FAILED = "task.failed"
    CANCELLED = "task.cancelled"
    CHECKPOINT = "task.checkpoint"
    RELEASED = "task.released"
    SNOOZED = "task.snoozed"


#: CloudEvents types, made once: an f-string for each event costs more.
EVENT_TYPES = {kind: cloudevents.event_type(kind.value) for kind in EventKind}


#: Types of events about an attempt that has not ended.
_GOES_ON = (EVENT_TYPES[EventKind.STARTED], EVENT_TYPES[EventKind.CHECKPOINT])


@dataclass(frozen=True, slots=True, kw_only=True)
class EventError:
    """Why an attempt failed.

    Attributes:
        type: the exception's class name; or, if reserved, a word of the contract such as
            WorkerLost, without the prefix that it has on the wire.
        message: one or a few lines for people, of `ERROR_MESSAGE_BYTES` at most.
        retryable: False when another attempt cannot help.
        reserved: the worker has found the failure, not an application: its exception class of the
            same name is just an error.
    """

    type: str
    message: str
    retryable: bool = True
    reserved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventResultRef:
    """What a result is that the worker has written to the TaskQueue's store.

    Where it is follows from the attempt: `taskqueue.model.result.result_key`.

    Attributes:
        size_bytes: of its body.
        content_type: a media type.
        sha256: of its body, in hexadecimal digits.
    """

    size_bytes: int
    content_type: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEvent:
    """One event about one attempt of a Task, or about the end of a direct message.

    Attributes:
        kind: what happened.
        namespace: of the Task; of the queue for a direct message.
        queue: name of the TaskQueue.
        task: name of the Task; of the queue for a direct message.
        uid: metadata.uid of the Task; empty for a direct message.
        token: repeated from the work message; empty for a direct message, and only there.
        attempt: repeated from the work message; a direct message's deliveries.
        epoch: repeated from the work message; 0 for a direct message.
        worker: the pod (or host) that ran it.
        seconds: how long it ran, where it ended; how long to wait, where it was snoozed.
        result: JSON object returned by the handler, on success.
        result_ref: what the handler returned, if that is in a store; on success.
        error: on failure.
        retry_after_seconds: how long the handler wants to wait before the next attempt.
        output: the last lines that a failed attempt has printed, `STATUS_OUTPUT_BYTES` at most.
        checkpoint: JSON object that the handler saved.
        deliveries: of an attempt given back: how often it had been delivered before.
        correlation_id: a direct message's own, where it has one.
        exchange: that a direct message was published to; "" from workers that do not say.
        id: the CloudEvent's. Empty: `encode` makes a unique one. The outcome of a direct message
            has that message's id, so that listeners recognize repeats.
    """

    kind: EventKind
    namespace: str
    queue: str
    task: str
    uid: str
    token: str
    attempt: int
    epoch: int
    worker: str
    seconds: float | None = None
    result: dict[str, Any] | None = None
    result_ref: EventResultRef | None = None
    error: EventError | None = None
    retry_after_seconds: float | None = None
    output: str = ""
    checkpoint: dict[str, Any] | None = None
    deliveries: int = 0
    correlation_id: str = ""
    exchange: str = ""
    id: str = ""

    @property
    def is_direct(self) -> bool:
        """Whether it is about a direct message, which has no Task and no attempt."""
        return not self.token

    @property
    def routing_key(self) -> str:
        """The key on the outcomes exchange: ``<namespace>.<queue>.<event>``."""
        return f"{routing_key(self.namespace, self.queue)}.{self.kind.value}"


def encode(event: AttemptEvent, *, prefixed: bool = True) -> bytes:
    """Return the event as a structured CloudEvent.

    Args:
        event: what happened.
        prefixed: write `RESERVED_PREFIX` before a reserved type. Operators that do not announce
            `taskqueue.contract.command.RESERVED_TYPES` know the bare names only.
    """
    data: dict[str, Any] = {
        "uid": event.uid,
        "token": event.token,
        "attempt": event.attempt,
        "epoch": event.epoch,
        "worker": event.worker,
    }
    if event.is_direct:
        data["correlationId"] = event.correlation_id
        if event.exchange:
            data["exchange"] = event.exchange
    if event.seconds is not None:
        data["seconds"] = event.seconds
    if event.result is not None:
        data["result"] = event.result
    if event.result_ref is not None:
        data["resultRef"] = {
            "sizeBytes": event.result_ref.size_bytes,
            "contentType": event.result_ref.content_type,
            "sha256": event.result_ref.sha256,
        }
    if event.error is not None:
        data["error"] = _encode_error(event.error, prefixed=prefixed)
    if event.retry_after_seconds is not None:
        data["retryAfterSeconds"] = event.retry_after_seconds
    if event.output:
        data["output"] = event.output
    if event.checkpoint is not None:
        data["checkpoint"] = event.checkpoint
    if event.deliveries:
        data["deliveries"] = event.deliveries
    return cloudevents.encode(
        id=event.id,
        type=EVENT_TYPES[event.kind],
        source=f"/workers/{event.worker}",
        subject=f"{event.namespace}/{event.task}",
        queue=event.queue,
        data=data,
    )


def decode(body: bytes) -> AttemptEvent:
    """Read an event from the wire.

    Raises:
        InexactEventError: it has a value that cannot be read exactly.
        ContractError: too large, not JSON, not a CloudEvent of ours, or a field is missing or of a
            wrong type.
    """
    event = CloudEvent.decode(body, limit=PARSED_EVENT_BYTES)
    data = event.data
    try:
        if len(body) > EVENT_BYTES:
            _check_size(event)
        error = data.get("error")
        result = data.get("result")
        if result is not None and not isinstance(result, dict):
            raise ContractError("event field data.result must be a JSON object")
        kind, checkpoint = EventKind(event.kind), data.get("checkpoint")
        if checkpoint is not None or kind is EventKind.CHECKPOINT:
            _check_checkpoint(checkpoint)
        return AttemptEvent(
            kind=kind,
            namespace=event.namespace,
            queue=event.queue,
            task=event.name,
            uid=str(data["uid"]),
            token=str(data["token"]),
            attempt=_integer(data["attempt"]),
            epoch=_integer(data["epoch"]),
            worker=str(data.get("worker", ""))[:OBJECT_NAME_LENGTH],
            seconds=_duration(data.get("seconds")),
            result=result,
            result_ref=_decode_result_ref(data.get("resultRef"), kind),
            error=None if error is None else _decode_error(error),
            retry_after_seconds=_number(data.get("retryAfterSeconds")),
            output=_decode_output(data.get("output"), kind),
            checkpoint=checkpoint,
            deliveries=_integer(data.get("deliveries", 0)),
            correlation_id=str(data.get("correlationId", "")),
            exchange=str(data.get("exchange", "")),
            id=event.id,
        )
    except ContractError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"not an event of the contract: {error!r}") from error


def claimed_attempt(body: bytes) -> AttemptClaim | None:
    """Return the attempt whose end an event claims to be, even where it breaks the contract.

    Of one that is too large, or nested far too deep, nothing is known.
    """
    if len(body) > PARSED_EVENT_BYTES:
        return None
    try:
        envelope = exact_json.decode_refused(body)
        if envelope.get("type") in _GOES_ON:
            return None
        data = envelope["data"]
        return AttemptClaim(
            uid=str(data["uid"]),
            token=str(data["token"]),
            attempt=int(data["attempt"]),
            epoch=int(data["epoch"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError):
        return None


def _check_checkpoint(checkpoint: Any) -> None:
    if not isinstance(checkpoint, dict):
        raise ContractError("event field data.checkpoint must be a JSON object")
    size = len(exact_json.encode(checkpoint))
    if size > CHECKPOINT_BYTES:
        raise ContractError(
            f"event field data.checkpoint has {size} bytes, the limit is {CHECKPOINT_BYTES}"
        )


def _check_size(event: CloudEvent) -> None:
    """Refuse an event that is too large without what has a limit of its own.

    Raises:
        ContractError: it is.
    """
    rest = {**event.data, "result": None, "checkpoint": None}
    size = len(exact_json.encode(replace(event, data=rest)))
    if size > EVENT_BYTES:
        raise ContractError(
            f"an event has {size} bytes without its result or checkpoint, the limit is "
            f"{EVENT_BYTES}"
        )


def _encode_error(error: EventError, *, prefixed: bool) -> dict[str, Any]:
    fields = {"type": error.type, "message": error.message, "retryable": error.retryable}
    if not error.reserved:
        fields["application"] = True
    elif prefixed:
        fields["type"] = RESERVED_PREFIX + error.type
    return fields


def _decode_error(fields: Any) -> EventError:
    """Read an error of a worker of any version."""
    kind = str(fields.get("type", "Error"))
    reserved = fields.get("application") is not True and (
        kind.startswith(RESERVED_PREFIX) or kind in _BARE_RESERVED
    )
    return EventError(
        type=without_prefix(kind)[:STATUS_REASON_LENGTH],
        message=cut(str(fields.get("message", "")), ERROR_MESSAGE_BYTES),
        retryable=bool(fields.get("retryable", True)),
        reserved=reserved,
    )


def _decode_result_ref(fields: Any, kind: EventKind) -> EventResultRef | None:
    """Read what a worker says of a result in a store; only a success has one.

    Raises:
        ContractError: it is none.
    """
    if fields is None or kind is not EventKind.SUCCEEDED:
        return None
    if not isinstance(fields, dict):
        raise ContractError("event field data.resultRef must be a JSON object")
    size, content_type, sha256 = (
        fields.get(name) for name in ("sizeBytes", "contentType", "sha256")
    )
    if type(size) is not int or not 0 <= size <= STORED_RESULT_BYTES:
        raise ContractError(
            "event field data.resultRef.sizeBytes must be a number of bytes, at most "
            f"{STORED_RESULT_BYTES}"
        )
    if (
        not isinstance(content_type, str)
        or len(content_type) > MEDIA_TYPE_LENGTH
        or not _MEDIA_TYPE.fullmatch(content_type)
    ):
        raise ContractError(
            "event field data.resultRef.contentType must be a media type of at most "
            f"{MEDIA_TYPE_LENGTH} characters"
        )
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ContractError(
            "event field data.resultRef.sha256 must have 64 hexadecimal digits, in lower case"
        )
    return EventResultRef(size_bytes=size, content_type=content_type, sha256=sha256)


def _decode_output(text: Any, kind: EventKind) -> str:
    """Read what a worker says that an attempt has printed; only a failure has it."""
    return cut(str(text or ""), STATUS_OUTPUT_BYTES) if kind is EventKind.FAILED else ""


def without_prefix(kind: str) -> str:
    """Return the type of an error without `RESERVED_PREFIX`, however often it begins with that."""
    while kind.startswith(RESERVED_PREFIX):
        kind = kind.removeprefix(RESERVED_PREFIX)
    return kind or "Error"


def _integer(value: Any) -> int:
    """Return an integer that every program can read: it is written again.

    Raises:
        ValueError, TypeError: it is none, or has more than 64 bits with its sign.
    """
    number = int(value)
    if not -INTEGER_END <= number < INTEGER_END:
        raise ValueError("an integer of more than 64 bits with its sign")
    return number


def _duration(value: Any) -> float | None:
    """Return a worker's duration within bounds: it is added to a time."""
    seconds = _number(value)
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_SECONDS)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
