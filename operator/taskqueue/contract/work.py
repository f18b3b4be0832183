"""Work messages: one attempt of a Task, or a direct message, on its way to a worker.

This module converts them between AMQP properties and dataclasses, as
docs/reference/message-contract.md defines them, without any I/O. A message that breaks the contract
raises `ContractError`, which names the header or property at fault.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from taskqueue.amqp.properties import BasicProperties
from taskqueue.contract.names import (
    APP_ID,
    CONTENT_TYPE_JSON,
    DIRECT_EXCHANGE,
    EXCHANGE_HEADER,
    QUEUE_KEY_BYTES,
    ContractError,
    routing_key,
)
from taskqueue.exact_json import decode
from taskqueue.jsonable import NotJsonError
from taskqueue.limits import CHECKPOINT_BYTES, OBJECT_NAME_LENGTH, TRACE_LENGTH
from taskqueue.timestamps import from_rfc3339

T = TypeVar("T")


CONTRACT_VERSION = 1


#: Header that says whether the operator has a checkpoint of the Task.
CHECKPOINTED_HEADER = "tq-checkpointed"
#: Header with the last checkpoint, as JSON.
CHECKPOINT_HEADER = "tq-checkpoint"

#: Header of a run of a TaskSchedule: its time, RFC 3339 in UTC.
SCHEDULED_TIME_HEADER = "tq-scheduled-time"

#: Header of an item of a TaskBatch: its index, from 0.
INDEX_HEADER = "tq-index"

#: Header of a Task with a concurrencyKey: a number that grows with every dispatch of the key.
FENCE_HEADER = "tq-fence"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkMessage:
    """One attempt of a Task on its way to a worker.

    Attributes:
        namespace: namespace of the Task and its TaskQueue.
        queue: name of the TaskQueue.
        task: name of the Task.
        uid: metadata.uid of the Task; the message's correlation id.
        handler: the name a worker registered; the message's type.
        attempt: 1-based.
        max_attempts: the number of attempts the Task has in all.
        epoch: see `taskqueue.model.token`.
        token: what every event about this attempt must repeat.
        max_deliveries: at this many deliveries without an outcome the attempt counts as lost.
        timeout_seconds: how long the attempt may run; whole seconds, as AMQP headers of the
            client library have no fractions.
        body: the payload, a JSON object in UTF-8.
        trace: W3C trace context headers (traceparent, tracestate), passed through.
        fence: of a Task with a concurrencyKey, else None: grows with every dispatch of the key.
        checkpoint: what a handler of the Task saved last, a JSON object in UTF-8, or None.
        checkpointed: whether a handler has saved something by now; None: the operator is an older
            one, which keeps no checkpoint and knows no snooze.
        scheduled_time: of the run of a TaskSchedule, in RFC 3339; "": it is none.
        index: of an item of a TaskBatch, from 0; None: it is none.
    """

    namespace: str
    queue: str
    task: str
    uid: str
    handler: str
    attempt: int
    max_attempts: int
    epoch: int
    token: str
    max_deliveries: int
    timeout_seconds: int
    body: bytes
    trace: Mapping[str, str] | None = None
    fence: int | None = None
    checkpoint: bytes | None = None
    checkpointed: bool | None = False
    scheduled_time: str = ""
    index: int | None = None

    def properties(self) -> BasicProperties:
        """Return the AMQP properties of one publish; every call makes a new message id."""
        headers: dict[str, Any] = {
            "tq-version": CONTRACT_VERSION,
            "tq-namespace": self.namespace,
            "tq-queue": self.queue,
            "tq-task": self.task,
            "tq-attempt": self.attempt,
            "tq-max-attempts": self.max_attempts,
            "tq-epoch": self.epoch,
            "tq-token": self.token,
            "tq-max-deliveries": self.max_deliveries,
            "tq-timeout-seconds": self.timeout_seconds,
        }
        if self.fence is not None:
            headers[FENCE_HEADER] = self.fence
        if self.checkpointed is not None:
            headers[CHECKPOINTED_HEADER] = self.checkpointed
        if self.checkpoint is not None:
            headers[CHECKPOINT_HEADER] = self.checkpoint.decode()
        if self.scheduled_time:
            headers[SCHEDULED_TIME_HEADER] = self.scheduled_time
        if self.index is not None:
            headers[INDEX_HEADER] = self.index
        if self.trace:
            headers.update(self.trace)
        return BasicProperties(
            content_type=CONTENT_TYPE_JSON,
            type=self.handler,
            message_id=uuid.uuid4().hex,
            correlation_id=self.uid,
            delivery_mode=2,
            timestamp=int(time.time()),
            app_id=APP_ID,
            headers=headers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectMessage:
    """A message that anybody may have published: by the exchange for it, or without a token.

    Attributes:
        handler: the message's type, or None: the worker's default handler.
        correlation_id: whatever the publisher set, or None.
        payload: the JSON object of the body, or ``{"text": …}`` for what is not JSON or no object.
    """

    handler: str | None
    correlation_id: str | None
    payload: dict[str, Any]


def parse_work(
    properties: BasicProperties, body: bytes, *, exchange: str
) -> WorkMessage | DirectMessage:
    """Read a delivery from a work queue.

    Args:
        properties: of the message.
        body: of the message.
        exchange: the one it was published to. By that for direct messages nothing else comes,
            whatever the headers say.

    Raises:
        ContractError: the message has a token, so it claims to be ours, and breaks the contract;
            or the JSON of a direct one cannot be read exactly.
    """
    headers: Mapping[str, Any] = properties.headers or {}
    token = headers.get("tq-token")
    if token is None or exchange == DIRECT_EXCHANGE:
        return DirectMessage(
            handler=properties.type or None,
            correlation_id=properties.correlation_id,
            payload=_direct_payload(body),
        )
    version = _header(headers, "tq-version", int)
    if version != CONTRACT_VERSION:
        raise ContractError(
            f"header tq-version is {version}, this worker speaks {CONTRACT_VERSION}: "
            "run a worker of the operator's version"
        )
    if not properties.correlation_id:
        raise ContractError("property correlation_id (the Task's uid) is missing")
    namespace, queue = _header(headers, "tq-namespace", str), _header(headers, "tq-queue", str)
    key_bytes = len(routing_key(namespace, queue).encode())
    if key_bytes > QUEUE_KEY_BYTES:
        raise ContractError(
            f"headers tq-namespace and tq-queue make a routing key of {key_bytes} bytes, the "
            f"limit is {QUEUE_KEY_BYTES}"
        )
    trace = {
        name: text
        for name in ("traceparent", "tracestate")
        if name in headers and len(text := str(headers[name])) <= TRACE_LENGTH
    }
    return WorkMessage(
        namespace=namespace,
        queue=queue,
        task=_header(headers, "tq-task", str),
        uid=properties.correlation_id,
        handler=properties.type or "",
        attempt=_header(headers, "tq-attempt", int),
        max_attempts=_header(headers, "tq-max-attempts", int),
        epoch=_header(headers, "tq-epoch", int),
        token=_header(headers, "tq-token", str),
        max_deliveries=_header(headers, "tq-max-deliveries", int),
        timeout_seconds=_header(headers, "tq-timeout-seconds", int),
        body=body,
        trace=trace or None,
        fence=_header(headers, FENCE_HEADER, int) if FENCE_HEADER in headers else None,
        checkpoint=_header(headers, CHECKPOINT_HEADER, str, limit=CHECKPOINT_BYTES).encode()
        if CHECKPOINT_HEADER in headers
        else None,
        checkpointed=bool(headers[CHECKPOINTED_HEADER]) if CHECKPOINTED_HEADER in headers else None,
        scheduled_time=_scheduled_time(headers),
        index=_header(headers, INDEX_HEADER, int) if INDEX_HEADER in headers else None,
    )


@dataclass(frozen=True, slots=True)
class AttemptClaim:
    """The attempt that a message claims to be about; only its token can prove it."""

    uid: str
    token: str
    attempt: int
    epoch: int


def published_to(headers: Mapping[str, Any]) -> str:
    """Return the exchange that a dead letter was published to when it was alive; "": not known.

    The broker's record of a death it caused counts before the header of whoever else moved the
    message: that may have been there before.
    """
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return str(deaths[0].get("exchange", ""))
    return str(headers.get(EXCHANGE_HEADER, ""))


def claimed_attempt(properties: BasicProperties) -> AttemptClaim | None:
    """Return the attempt a dead letter claims to have been, even where it breaks the contract.

    A direct message can claim none.
    """
    headers: Mapping[str, Any] = properties.headers or {}
    if published_to(headers) == DIRECT_EXCHANGE:
        return None
    try:
        return AttemptClaim(
            uid=properties.correlation_id or "",
            token=_header(headers, "tq-token", str),
            attempt=_header(headers, "tq-attempt", int),
            epoch=_header(headers, "tq-epoch", int),
        )
    except ContractError:
        return None


def deliveries_so_far(properties: BasicProperties, *, redelivered: bool) -> int:
    """Return how often this message was returned to the broker.

    The count is the broker's own header, believed only on a redelivery: a publisher's header of
    the same name is passed through untouched.
    """
    if not redelivered:
        return 0
    count = (properties.headers or {}).get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


def _scheduled_time(headers: Mapping[str, Any]) -> str:
    if SCHEDULED_TIME_HEADER not in headers:
        return ""
    text = _header(headers, SCHEDULED_TIME_HEADER, str)
    try:
        from_rfc3339(text)
    except ValueError:
        raise ContractError(
            f"header {SCHEDULED_TIME_HEADER} must be a time as in RFC 3339, it is {text!r}"
        ) from None
    return text


def _direct_payload(body: bytes) -> dict[str, Any]:
    try:
        parsed = decode(body, "payload")
    except NotJsonError as error:
        raise ContractError(f"the body cannot be read exactly: {error}") from None
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"text": body.decode("utf-8", errors="replace")}


def _header(
    headers: Mapping[str, Any], name: str, kind: type[T], *, limit: int = OBJECT_NAME_LENGTH
) -> T:
    value = headers.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "missing" if value is None else f"{value!r}"
        raise ContractError(f"header {name} must be of type {kind.__name__}, it is {found}")
    if value == "":
        raise ContractError(f"header {name} must not be empty")
    if isinstance(value, str) and len(value) > limit:
        raise ContractError(f"header {name} has {len(value)} characters, the limit is {limit}")
    return value
