"""Messages to publish until they are confirmed: outcomes, dead letters and others.

An `OutgoingMessage` can be published any number of times; every publish makes properties with a new
message id, by which a returned message is identified.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Any

from taskqueue.amqp.properties import BasicProperties, encoded_bytes
from taskqueue.contract import batch
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.names import (
    APP_ID,
    CUT_HEADER,
    DEAD_EXCHANGE,
    ERROR_HEADER,
    EXCHANGE_HEADER,
    OUTCOMES_EXCHANGE,
    routing_key,
)
from taskqueue.contract.text import cut as cut_text
from taskqueue.limits import DEAD_REASON_BYTES, HEADERS_BYTES
from taskqueue.records import record

#: Message ids count up after a prefix of this process: random ones cost a system call each.
_PROCESS = uuid.uuid4().hex
_numbers = itertools.count(1)


@record
class OutgoingMessage:
    """One message to publish until it is confirmed; what is not persistent need not arrive."""

    _: KW_ONLY
    exchange: str
    key: str
    body: bytes
    content_type: str | None
    type: str | None = None
    correlation_id: str | None = None
    headers: Mapping[str, Any] | None = None
    timestamp: int | None = None
    persistent: bool = True

    def properties(self) -> BasicProperties:
        """Return the properties of one publish."""
        return BasicProperties(
            content_type=self.content_type,
            type=self.type,
            message_id=f"{_PROCESS}-{next(_numbers)}",
            correlation_id=self.correlation_id,
            delivery_mode=2 if self.persistent else 1,
            timestamp=self.timestamp,
            app_id=APP_ID,
            headers=None if self.headers is None else dict(self.headers),
        )


def outcome_message(key: str, body: bytes) -> OutgoingMessage:
    """Return an encoded event addressed to the operator; ``key`` is the event's routing key."""
    return OutgoingMessage(
        exchange=OUTCOMES_EXCHANGE, key=key, body=body, content_type=CONTENT_TYPE
    )


def batch_message(key: str, events: Sequence[bytes]) -> OutgoingMessage:
    """Return encoded events of one routing key addressed to the operator, as one message."""
    return OutgoingMessage(
        exchange=OUTCOMES_EXCHANGE,
        key=key,
        body=batch.join(events),
        content_type=batch.CONTENT_TYPE,
    )


def dead_letter(
    properties: BasicProperties,
    body: bytes,
    *,
    exchange: str,
    namespace: str,
    queue: str,
    reason: str,
) -> OutgoingMessage:
    """Return a delivery as a message for the dead queue, with the reason in a header.

    Another header names the exchange it was published to: what a direct message claims counts as
    little in the dead queue as before. The publisher's headers stay; the broker's own (``x-…``) do
    not, nor what would make the copy expire, be refused (user id) or be answered.
    """
    headers = without_broker_headers(properties)
    headers[EXCHANGE_HEADER] = exchange
    headers[ERROR_HEADER] = cut_text(reason, DEAD_REASON_BYTES)
    return OutgoingMessage(
        exchange=DEAD_EXCHANGE,
        key=routing_key(namespace, queue),
        body=body,
        content_type=properties.content_type,
        type=properties.type,
        correlation_id=properties.correlation_id,
        headers=headers,
        timestamp=int(time.time()),  # of its death
    )


def without_broker_headers(properties: BasicProperties) -> dict[str, Any]:
    """Return the headers that the publisher set, in a form that can be published again.

    What cannot be is left out, and so are the largest headers if all together would not fit a
    frame. `CUT_HEADER` names what was left out.
    """
    headers: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    cut: list[str] = []
    for name, value in (properties.headers or {}).items():
        if name.startswith("x-"):
            continue
        copy = _encodable(value)
        size = encoded_bytes(name, copy)
        if size is None:
            cut.append(name)
        else:
            headers[name], sizes[name] = copy, size
    excess = sum(sizes.values()) - HEADERS_BYTES
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if excess <= 0:
            break
        excess -= sizes[name]
        del headers[name]
        cut.append(name)
    if cut:
        headers[CUT_HEADER] = cut_text(", ".join(cut), DEAD_REASON_BYTES)
    return headers


def _encodable(value: Any) -> Any:
    """Return a header value that pika can encode: floats become text.

    One that is nested too deeply for Python becomes None.
    """
    try:
        return _encodable_inside(value)
    except RecursionError:
        return None


def _encodable_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _encodable_inside(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_encodable_inside(inner) for inner in value]
    return str(value) if isinstance(value, float) else value
