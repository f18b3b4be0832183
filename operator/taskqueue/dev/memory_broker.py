"""A broker in memory: the exchanges of the message contract, for one process.

It stands where `amqp` stands otherwise: `MemoryPublisher` for a publisher, `MemoryChannel` for a
channel. Contract, as far as operator and workers rely on it:

* a message is confirmed once it is in its queue, in a later turn of the loop;
* a delivery is unacknowledged until it is settled; what is requeued comes again, counted, and goes
  to the dead exchange above `DELIVERY_LIMIT`;
* a consumer has no more unacknowledged deliveries than its prefetch.

Nothing is kept when the process ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import OnSettled, Publisher, Settled
from taskqueue.contract import command
from taskqueue.contract.names import (
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    DIRECT_EXCHANGE,
    EVENTS_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
)
from taskqueue.contract.outgoing import without_broker_headers
from taskqueue.limits import DELIVERY_LIMIT
from taskqueue.worker.runtime import Runtime

#: What the operator's inbox is bound to.
_TO_INBOX = (OUTCOMES_EXCHANGE, DEAD_EXCHANGE, HEARTBEATS_EXCHANGE)


@dataclass(eq=False)
class _Message:
    exchange: str
    key: str
    properties: BasicProperties
    body: bytes
    returned: int = 0


@dataclass
class _WorkQueue:
    """What may run now for one TaskQueue, and who runs it; None: nobody yet."""

    waiting: deque[_Message] = field(default_factory=deque)
    channel: MemoryChannel | None = None


class MemoryBroker:
    """Routes messages between the operator's half and the runtimes of the workers.

    Args:
        loop: everything here is called on it.
        on_inbox: called with each message for the operator.
        on_dead_letter: called with each dead letter, and its routing key.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_inbox: Callable[[Delivery], None],
        on_dead_letter: Callable[[str, BasicProperties], None] = lambda key, properties: None,
    ) -> None:
        self._loop = loop
        self._on_inbox = on_inbox
        self._on_dead_letter = on_dead_letter
        self._queues: dict[str, _WorkQueue] = {}
        self._inbox = cast(Channel, _InboxChannel())
        self.publisher = cast(Publisher, MemoryPublisher(self))

    def consume(self, key: str, runtime: Runtime) -> None:
        """Give a TaskQueue's work, by its routing key, to a runtime from now on."""
        queue = self._queue(key)
        queue.channel = MemoryChannel(queue, runtime, self)
        runtime.on_channel_opened(cast(Channel, queue.channel))
        runtime.on_command(command.FIRST_COMMAND)
        self.pump(key)

    def pump(self, key: str) -> None:
        """Deliver what there is room for, in a later turn of the loop."""
        self._loop.call_soon(self._deliver, key)

    def ready(self, key: str) -> int:
        """Return how many messages no worker has."""
        return len(self._queue(key).waiting)

    def route(self, message: _Message) -> str:
        """Put a message where it belongs; return why it cannot be, "" if it is there."""
        if message.exchange in (WORK_EXCHANGE, DIRECT_EXCHANGE):
            self._queue(message.key).waiting.append(message)
            self.pump(message.key)
        elif message.exchange in _TO_INBOX:
            if message.exchange == DEAD_EXCHANGE:
                self._on_dead_letter(message.key, message.properties)
            self._loop.call_soon(self._on_inbox, self._to_inbox(message))
        elif (message.exchange, message.key) == ("", CONTROL_STREAM):
            said = command.decode(message.body)
            for queue in self._queues.values():
                if queue.channel is not None:
                    self._loop.call_soon(queue.channel.runtime.on_command, said)
        elif message.exchange != EVENTS_EXCHANGE:
            return f"there is no exchange {message.exchange!r}"
        return ""

    def requeue(self, queue: _WorkQueue, message: _Message) -> None:
        """Put a message back in front, or to the dead letters when it came back too often."""
        message.returned += 1
        if message.returned > DELIVERY_LIMIT:
            headers = {
                **without_broker_headers(message.properties),
                "x-last-death-reason": "delivery_limit",
                "x-death": [{"exchange": message.exchange}],
            }
            message.properties.headers = headers
            self.route(_Message(DEAD_EXCHANGE, message.key, message.properties, message.body))
        else:
            queue.waiting.appendleft(message)
        self.pump(message.key)

    def _queue(self, key: str) -> _WorkQueue:
        return self._queues.setdefault(key, _WorkQueue())

    def _deliver(self, key: str) -> None:
        queue = self._queue(key)
        while queue.waiting and queue.channel is not None and queue.channel.has_room:
            queue.channel.deliver(queue.waiting.popleft())

    def _to_inbox(self, message: _Message) -> Delivery:
        return Delivery(
            channel=self._inbox,
            delivery_tag=0,
            redelivered=False,
            exchange=message.exchange,
            routing_key=message.key,
            properties=message.properties,
            body=message.body,
        )


class MemoryPublisher:
    """Does what `taskqueue.amqp.publisher.Publisher` does, on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._loop = broker._loop
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.outstanding = 0

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        on_settled: OnSettled,
        *,
        mandatory: bool = True,
    ) -> None:
        """Route a message, and settle it in a later turn of the loop."""
        problem = self._broker.route(_Message(exchange, key, properties, body))
        verdict = Settled.RETURNED if problem else Settled.CONFIRMED
        self._loop.call_soon(on_settled, verdict, problem)


class MemoryChannel:
    """Does what a worker needs of `taskqueue.amqp.channel.Channel`."""

    is_open = True

    def __init__(self, queue: _WorkQueue, runtime: Runtime, broker: MemoryBroker) -> None:
        self.runtime = runtime
        self._queue = queue
        self._broker = broker
        self._unsettled: dict[int, _Message] = {}
        self._last_tag = 0

    @property
    def has_room(self) -> bool:
        """Whether one more unacknowledged delivery is within the prefetch."""
        return len(self._unsettled) < self.runtime.prefetch

    @property
    def unsettled(self) -> int:
        """Deliveries that are neither acknowledged nor given back."""
        return len(self._unsettled)

    def deliver(self, message: _Message) -> None:
        """Hand a message to the runtime."""
        self._last_tag += 1
        self._unsettled[self._last_tag] = message
        properties = message.properties
        if message.returned:
            headers = {**(properties.headers or {}), "x-delivery-count": message.returned}
            properties.headers = headers
        self.runtime.on_delivery(
            Delivery(
                channel=cast(Channel, self),
                delivery_tag=self._last_tag,
                redelivered=message.returned > 0,
                exchange=message.exchange,
                routing_key=message.key,
                properties=properties,
                body=message.body,
            )
        )

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """Forget a delivery; with ``multiple`` all up to it."""
        for message in self._settle(delivery_tag, multiple=multiple):
            self._broker.pump(message.key)

    def nack(self, delivery_tag: int, *, requeue: bool) -> None:
        """Give a delivery back."""
        self.reject(delivery_tag, requeue=requeue)

    def reject(self, delivery_tag: int, *, requeue: bool) -> None:
        """Give a delivery back; without ``requeue`` it is dropped."""
        for message in self._settle(delivery_tag, multiple=False):
            if requeue:
                self._broker.requeue(self._queue, message)

    def _settle(self, tag: int, *, multiple: bool) -> list[_Message]:
        tags = [one for one in self._unsettled if one <= tag] if multiple else [tag]
        return [self._unsettled.pop(one) for one in tags if one in self._unsettled]


class _InboxChannel:
    """What the operator acknowledges on: its inbox is never redelivered here."""

    is_open = True

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """Do nothing."""
