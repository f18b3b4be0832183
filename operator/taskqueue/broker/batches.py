"""Several events in one message, as the CloudEvents format has it, and each as if it came alone.

An outcome of its own message costs the broker as much as the work it is about: it is stored and
confirmed like that. A worker that has several to tell at once puts them into one; they share the
routing key. The message is acknowledged when each of its events has been.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import cast

import orjson

from taskqueue.broker.channel import Channel, Delivery
from taskqueue.broker.events import CONTENT_TYPE

BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"


def batch(events: Sequence[bytes]) -> bytes:
    """Return the body of a message with these encoded events."""
    return b"[" + b",".join(events) + b"]"


def parts(delivery: Delivery) -> list[Delivery]:
    """Return a delivery for every event in this one, to be acknowledged one by one.

    What is not a batch, or cannot be read as one, is returned as it is.
    """
    if delivery.properties.content_type != BATCH_CONTENT_TYPE:
        return [delivery]
    try:
        events = orjson.loads(delivery.body)
    except orjson.JSONDecodeError:
        return [delivery]
    if not isinstance(events, list) or not events:
        return [delivery]
    properties = copy(delivery.properties)
    properties.content_type = CONTENT_TYPE
    channel = cast(Channel, _SharedChannel(delivery, len(events)))
    return [
        replace(
            delivery,
            channel=channel,
            delivery_tag=number,
            properties=properties,
            body=orjson.dumps(event),
        )
        for number, event in enumerate(events)
    ]


class _SharedChannel:
    """The channel of the parts: acknowledges the message with the last of them."""

    __slots__ = ("_delivery", "_left")

    def __init__(self, delivery: Delivery, count: int) -> None:
        self._delivery = delivery
        self._left = set(range(count))

    def ack(self, delivery_tag: int) -> None:
        """Acknowledge a part; again is harmless."""
        if delivery_tag in self._left:
            self._left.remove(delivery_tag)
            if not self._left:
                self._delivery.channel.ack(self._delivery.delivery_tag)
