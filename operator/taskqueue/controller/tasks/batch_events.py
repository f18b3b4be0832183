"""The events of a batch as deliveries of their own, which are acknowledged one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.properties import BasicProperties
from taskqueue.contract import batch
from taskqueue.contract.cloudevents import CONTENT_TYPE


def events_of(delivery: Delivery) -> Iterator[Delivery]:
    """Return each event of a batch as if it had come alone.

    The batch is acknowledged when all of them are.

    Raises:
        ContractError: it is no batch.
    """
    events = batch.split(delivery.body)
    channel = cast(Channel, _BatchChannel(delivery, len(events)))
    properties = BasicProperties(content_type=CONTENT_TYPE, headers=delivery.properties.headers)
    for tag, body in enumerate(events):
        yield replace(delivery, channel=channel, delivery_tag=tag, properties=properties, body=body)


class _BatchChannel:
    """Stands for the channel of a batch: acknowledges that when each of its events is."""

    __slots__ = ("_delivery", "_unacknowledged")

    def __init__(self, delivery: Delivery, events: int) -> None:
        self._delivery = delivery.without_content()
        self._unacknowledged = set(range(events))

    @property
    def is_open(self) -> bool:
        """Whether an acknowledgement can still arrive."""
        return self._delivery.channel.is_open

    def ack(self, delivery_tag: int) -> None:
        """Acknowledge one event; a second time changes nothing."""
        if delivery_tag in self._unacknowledged:
            self._unacknowledged.remove(delivery_tag)
            if not self._unacknowledged:
                self._delivery.channel.ack(self._delivery.delivery_tag)
