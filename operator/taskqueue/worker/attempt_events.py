"""From a work message and the result of its attempt to the event that is published.

Pure: no loop, no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.names import ContractError
from taskqueue.contract.outcome import AttemptEvent, EventKind, EventResultRef, encode
from taskqueue.contract.work import DirectMessage, WorkMessage
from taskqueue.exact_json import decode
from taskqueue.model.command import CommandKind
from taskqueue.model.result import ResultReference
from taskqueue.worker.checkpoints import read_checkpoint
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.outcome import failure
from taskqueue.worker.outcome_cache import CachedOutcome


def payload_of(message: WorkMessage | DirectMessage) -> dict[str, Any]:
    """Return the JSON object a handler gets.

    Raises:
        ContractError: a work message's body is not a JSON object, or cannot be read exactly.
    """
    if isinstance(message, DirectMessage):
        return message.payload
    try:
        payload = decode(message.body, "payload")
    except ValueError as error:
        raise ContractError(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ContractError(f"the body is not a JSON object but {type(payload).__name__}")
    return payload


def work_attempt(
    message: WorkMessage,
    payload: dict[str, Any],
    *,
    redelivered: bool = False,
    on_checkpoint: Callable[[bytes], None] | None = None,
) -> AttemptRequest:
    """Return the attempt a work message asks for.

    Raises:
        ContractError: its checkpoint is none.
    """
    if message.checkpoint is not None:
        try:
            read_checkpoint(message.checkpoint)
        except ValueError as error:
            raise ContractError(f"header tq-checkpoint is no checkpoint: {error}") from None
    kept = message.checkpointed is not None
    return AttemptRequest(
        handler=message.handler,
        payload=payload,
        task=f"{message.namespace}/{message.task}",
        uid=message.uid,
        queue=message.queue,
        attempt=message.attempt,
        max_attempts=message.max_attempts,
        timeout_seconds=message.timeout_seconds,
        fence=message.fence,
        epoch=message.epoch,
        checkpoint=message.checkpoint,
        checkpoint_known=not (kept and redelivered),
        on_checkpoint=on_checkpoint if kept else None,
        scheduled_time=datetime.fromisoformat(message.scheduled_time)
        if message.scheduled_time
        else None,
        index=message.index,
    )


def event_of(
    message: WorkMessage,
    kind: EventKind,
    *,
    worker: str,
    result: AttemptResult | None = None,
    checkpoint: dict[str, Any] | None = None,
    deliveries: int = 0,
    prefixed: bool = False,
) -> CachedOutcome:
    """Return an encoded event about the attempt.

    Args:
        message: that brought the attempt.
        kind: what happened.
        worker: the pod.
        result: of an attempt that has ended.
        checkpoint: that the handler saved.
        deliveries: how often an attempt given back had been delivered before.
        prefixed: see `taskqueue.contract.outcome.encode`.
    """
    seconds = None if result is None else round(result.seconds, 6)
    if result is not None and result.snooze_seconds is not None:
        seconds = result.snooze_seconds
    event = AttemptEvent(
        kind=kind,
        namespace=message.namespace,
        queue=message.queue,
        task=message.task,
        uid=message.uid,
        token=message.token,
        attempt=message.attempt,
        epoch=message.epoch,
        worker=worker,
        seconds=seconds,
        result=None if result is None else result.result,
        result_ref=None if result is None else _result_ref(result.reference),
        error=None if result is None else result.error,
        retry_after_seconds=None if result is None else result.retry_after_seconds,
        output="" if result is None else result.output,
        checkpoint=checkpoint,
        deliveries=deliveries,
    )
    return _encoded(event, prefixed=prefixed)


def stopped_event(
    message: WorkMessage, command: CommandKind, *, worker: str, seconds: float
) -> CachedOutcome:
    """Return the encoded answer to a command about an attempt that ran for ``seconds``."""
    if command is CommandKind.RELEASE:
        return event_of(message, EventKind.RELEASED, worker=worker)
    result = AttemptResult(seconds=seconds)
    return event_of(message, EventKind.CANCELLED, worker=worker, result=result)


def direct_event(
    attempt: AttemptRequest,
    result: AttemptResult,
    *,
    namespace: str,
    worker: str,
    delivery: Delivery,
    prefixed: bool = False,
) -> CachedOutcome:
    """Return the encoded end of a direct message; it has the message's id, if any."""
    event = AttemptEvent(
        kind=kind_of(result),
        namespace=namespace,
        queue=attempt.queue,
        task=attempt.queue,
        uid="",
        token="",
        attempt=attempt.attempt,
        epoch=0,
        worker=worker,
        seconds=round(result.seconds, 6),
        result=result.result,
        error=result.error,
        correlation_id=attempt.uid,
        exchange=delivery.exchange,
        id=delivery.properties.message_id or "",
    )
    return _encoded(event, prefixed=prefixed)


def _result_ref(reference: ResultReference | None) -> EventResultRef | None:
    """Return what an outcome says of a result in a store: all but where it is."""
    if reference is None:
        return None
    return EventResultRef(
        size_bytes=reference.size_bytes,
        content_type=reference.content_type,
        sha256=reference.sha256,
    )


def _encoded(event: AttemptEvent, *, prefixed: bool) -> CachedOutcome:
    """Return the encoded event, or in place of one that cannot be encoded, a failed attempt.

    Without an outcome the attempt would hold its delivery, and with it a slot, forever.
    """
    try:
        body = encode(event, prefixed=prefixed)
    except (TypeError, ValueError, RecursionError) as error:
        result = failure(
            "InvalidResult", f"its outcome cannot be encoded: {error}", 0.0, retryable=False
        )
        event = replace(
            event,
            kind=EventKind.FAILED,
            result=None,
            result_ref=None,
            error=result.error,
            retry_after_seconds=None,
        )
        body = encode(event, prefixed=prefixed)
    return CachedOutcome(event.routing_key, body)


def kind_of(result: AttemptResult) -> EventKind:
    """Return the kind of event that reports this result."""
    if result.snooze_seconds is not None:
        return EventKind.SNOOZED
    return EventKind.SUCCEEDED if result.error is None else EventKind.FAILED


def timed_out(timeout_seconds: float) -> AttemptResult:
    """Return the result of an attempt that outlived its time."""
    return failure(
        "Timeout", f"the attempt did not end within {timeout_seconds:g} s", timeout_seconds
    )


def worker_lost(deliveries: int) -> AttemptResult:
    """Return the result of an attempt that was delivered too often without an outcome."""
    times = "once" if deliveries == 1 else f"{deliveries} times"
    return failure(
        "WorkerLost",
        f"the attempt was delivered {times} and no outcome came: each time its worker was killed, "
        "ran out of memory or was cut off from the broker",
        0.0,
    )
