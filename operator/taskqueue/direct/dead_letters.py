"""Reads, redrives and purges the messages in the dead queue of a TaskQueue.

Contract:

* A pass reads the first `WINDOW` messages and holds them until its channel closes. A pass therefore
  leaves the order as it is: the broker puts requeued messages behind those that other consumers
  hold, but in front of those that were never delivered. The queue has no delivery limit.
* Others may purge, read or redrive at the same time: a pass ends when no more messages come.
* A message is redriven only if it was a direct message. It is acknowledged when the broker has
  confirmed its copy; in between it may be in both queues, never in none.
* A message of a Task stays: its Task has continued or ended by its own retry policy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.names import (
    DIRECT_EXCHANGE,
    ERROR_HEADER,
    EVENTS_EXCHANGE,
    EXCHANGE_HEADER,
    OUTCOMES_EXCHANGE,
    dead_queue,
    routing_key,
)
from taskqueue.contract.outgoing import OutgoingMessage, without_broker_headers
from taskqueue.contract.topology import find_direct_exchange, ready_messages
from taskqueue.contract.work import published_to

#: Messages read in one pass. Every pass reads the same number: passes of different lengths would
#: change the order.
WINDOW = 1000
#: When no message comes for this long, another consumer holds the rest.
_IDLE_SECONDS = 2.0
#: A broker that confirms nothing for this long blocks its publishers.
_CONFIRM_SECONDS = 15.0


class NoDeadQueue(Exception):
    """The broker has no such dead queue."""


class DeadLetterKind(StrEnum):
    """What a message was before it was dead-lettered."""

    #: A direct message: work without a Task.
    DIRECT = "direct"
    #: An attempt of a Task.
    TASK = "task"
    #: An outcome that does not follow the message contract.
    OUTCOME = "outcome"
    #: The end of a Task that a webhook has not accepted for a day.
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message in a dead queue.

    Attributes:
        id: message id; "" for none.
        kind: what it was before.
        died: when it was dead-lettered, in seconds since the epoch; None: unknown.
        handler: "" for the default handler.
        task: ``namespace/name`` of its Task; "" for none.
        correlation_id: "" for none.
        reason: why it was dead-lettered; "" when unknown.
        size: of the body, in bytes.
        body_start: as much of the body as was asked for.
    """

    id: str
    kind: DeadLetterKind
    died: float | None
    handler: str
    task: str
    correlation_id: str
    reason: str
    size: int
    body_start: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """The messages one pass read, oldest first, and how many the queue had when it began."""

    messages: tuple[DeadLetter, ...]
    total: int


@dataclass(slots=True)
class RedriveResult:
    """The result of one redrive: how many messages were redriven, and why others were not.

    Attributes:
        exchange: where they were published.
        redriven: moved to the work queue.
        kept_tasks: kept because they are attempts of Tasks.
        kept_outcomes: kept because they are outcomes or ends, not work.
        not_chosen: kept because their id was not given, or the limit was reached.
        refused: for each message that could not be published, the broker's reason.
        not_found: given ids that none of the messages read has.
        not_read: messages behind the window.
    """

    exchange: str
    redriven: int = 0
    kept_tasks: int = 0
    kept_outcomes: int = 0
    not_chosen: int = 0
    refused: list[str] = field(default_factory=list)
    not_found: tuple[str, ...] = ()
    not_read: int = 0


async def read_dead_letters(
    connection: Connection, namespace: str, queue: str, *, body_bytes: int = 0
) -> DeadLetterPage:
    """Read the messages and leave them in the dead queue.

    Args:
        connection: to the broker.
        namespace: of the TaskQueue.
        queue: its name.
        body_bytes: of each body, at most this many are kept.

    Raises:
        NoDeadQueue: the TaskQueue has no dead queue at this broker.
        ChannelRefused: the broker user may not read it.
        BrokerUnavailable: the connection was lost, or the queue was deleted meanwhile.
    """
    messages: list[DeadLetter] = []
    channel = await connection.channel()
    try:
        total = await _read_window(
            channel,
            dead_queue(namespace, queue),
            lambda delivery: messages.append(
                describe(
                    delivery.properties,
                    delivery.body,
                    problem=delivery.problem,
                    body_bytes=body_bytes,
                )
            ),
        )
    finally:
        await channel.close()
    return DeadLetterPage(tuple(messages), total)


async def redrive(
    connection: Connection,
    namespace: str,
    queue: str,
    *,
    ids: frozenset[str] | None = None,
    limit: int = WINDOW,
) -> RedriveResult:
    """Publish direct messages to the exchange for them again, oldest first.

    Args:
        connection: to the broker.
        namespace: of the TaskQueue.
        queue: its name.
        ids: ids of the messages to redrive; None: all.
        limit: redrive at most this many.

    Raises: as `read_dead_letters`.
    """
    publisher = await Publisher.open(connection)
    channel = await connection.channel()
    result = RedriveResult(exchange=await find_direct_exchange(connection))
    target = (result.exchange, routing_key(namespace, queue))
    run = _Redrive(publisher, target, ids, limit, result)
    try:
        total = await _read_window(channel, dead_queue(namespace, queue), run.on_message)
        await run.wait_for_confirms()
    finally:
        await channel.close()
        await publisher.close()
    result.not_read = max(total - WINDOW, 0)
    result.not_found = tuple(sorted((ids or frozenset()) - run.seen_ids))
    return result


async def count(connection: Connection, namespace: str, queue: str) -> int:
    """Return the number of messages, without those that another consumer holds.

    Raises: as `read_dead_letters`.
    """
    channel = await connection.channel()
    try:
        return await _count(channel, dead_queue(namespace, queue))
    finally:
        await channel.close()


async def purge(connection: Connection, namespace: str, queue: str) -> int:
    """Delete all messages but those that another consumer holds; return how many.

    Raises: as `read_dead_letters`.
    """
    channel = await connection.channel()
    try:
        await _count(channel, dead_queue(namespace, queue))
        return await channel.purge_queue(dead_queue(namespace, queue))
    finally:
        await channel.close()


def describe(
    properties: BasicProperties, body: bytes, *, problem: str = "", body_bytes: int = 0
) -> DeadLetter:
    """Describe a message of a dead queue; anybody may have published it, so nothing is trusted.

    Args:
        properties: of the message.
        body: of the message.
        problem: why its properties cannot be read.
        body_bytes: at most this many of the body are kept.
    """
    headers: Mapping[str, Any] = properties.headers or {}
    kind = _kind(properties, headers)
    task = ""
    if kind is DeadLetterKind.TASK:
        task = f"{headers.get('tq-namespace', '')}/{headers.get('tq-task', '')}"
    return DeadLetter(
        id=properties.message_id or "",
        kind=kind,
        died=_died(properties, headers),
        handler=properties.type or "",
        task=task,
        correlation_id=properties.correlation_id or "",
        reason=problem or _reason(headers),
        size=len(body),
        body_start=body[:body_bytes],
    )


class _Redrive:
    """Publishes the messages of one pass, and acknowledges each when its copy is confirmed."""

    def __init__(
        self,
        publisher: Publisher,
        target: tuple[str, str],
        ids: Container[str] | None,
        limit: int,
        result: RedriveResult,
    ) -> None:
        self.seen_ids: set[str] = set()
        self._publisher = publisher
        self._exchange, self._key = target
        self._ids = ids
        self._left = limit
        self._result = result
        self._progress = asyncio.Event()

    def on_message(self, delivery: Delivery) -> None:
        properties = delivery.properties
        kind = _kind(properties, properties.headers or {})
        self.seen_ids.add(properties.message_id or "")
        if delivery.problem:
            self._result.refused.append(f"{delivery.problem}: it stays in the dead queue")
            return
        if self._ids is not None and (properties.message_id or "") not in self._ids:
            self._result.not_chosen += 1
        elif kind is DeadLetterKind.TASK:
            self._result.kept_tasks += 1
        elif kind in (DeadLetterKind.OUTCOME, DeadLetterKind.WEBHOOK):
            self._result.kept_outcomes += 1
        elif self._left <= 0:
            self._result.not_chosen += 1
        else:
            self._left -= 1
            self._publish(delivery)

    def _publish(self, delivery: Delivery) -> None:
        properties = delivery.properties
        headers = without_broker_headers(properties)
        for name in (ERROR_HEADER, EXCHANGE_HEADER):
            headers.pop(name, None)
        copy = OutgoingMessage(
            exchange=self._exchange,
            key=self._key,
            body=delivery.body,
            content_type=properties.content_type,
            type=properties.type,
            correlation_id=properties.correlation_id,
            headers=headers or None,
            timestamp=int(time.time()),
        )

        def on_settled(verdict: Settled, text: str) -> None:
            if verdict is Settled.CONFIRMED:
                delivery.channel.ack(delivery.delivery_tag)
                self._result.redriven += 1
            else:
                self._result.refused.append(text)
            self._progress.set()

        try:
            self._publisher.publish(
                copy.exchange, copy.key, copy.body, copy.properties(), on_settled
            )
        except ValueError as error:
            self._result.refused.append(str(error))

    async def wait_for_confirms(self) -> None:
        """Return when the broker has answered every publish.

        Raises:
            BrokerUnavailable: it confirms nothing.
        """
        while self._publisher.outstanding:
            self._progress.clear()
            try:
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await self._progress.wait()
            except TimeoutError:
                raise BrokerUnavailable(
                    f"the broker confirms nothing: {self._result.redriven} messages were redriven, "
                    f"{self._publisher.outstanding} may be in both queues: check for a memory or "
                    "disk alarm (rabbitmq-diagnostics alarms)"
                ) from None


async def _count(channel: Channel, queue: str) -> int:
    ready = await ready_messages(channel, queue)
    if ready is None:
        raise NoDeadQueue(
            f"the broker has no queue {queue}: check namespace and name of the TaskQueue, and that "
            "its condition BrokerConnected is True"
        )
    return ready


async def _read_window(channel: Channel, queue: str, on_message: Callable[[Delivery], None]) -> int:
    """Call ``on_message`` for up to `WINDOW` messages, oldest first; return the queue's length.

    They are held until the caller closes the channel, which requeues what is not acknowledged.
    """
    total = await _count(channel, queue)
    expected = min(total, WINDOW)
    if not expected:
        return total
    seen = 0
    progress = asyncio.Event()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_delivery(delivery: Delivery) -> None:
        nonlocal seen
        seen += 1
        if seen <= expected:  # later ones came meanwhile, some of them redriven by this very pass
            on_message(delivery)
        progress.set()

    def on_cancel(reason: str) -> None:
        if not ended.done():
            ended.set_result(reason)
        progress.set()

    def on_closed(closed: asyncio.Future[tuple[int, str]]) -> None:
        on_cancel(closed.result()[1])

    channel.closed.add_done_callback(on_closed)
    await channel.set_prefetch(WINDOW)
    await channel.consume(queue, on_delivery, on_cancel)
    while seen < expected and not ended.done():
        progress.clear()
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await progress.wait()
        except TimeoutError:
            break
    if ended.done():
        raise BrokerUnavailable(f"queue {queue}: {ended.result()}")
    return total


_YEAR_10000 = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def _kind(properties: BasicProperties, headers: Mapping[str, Any]) -> DeadLetterKind:
    came_by = published_to(headers)
    if came_by == DIRECT_EXCHANGE:
        return DeadLetterKind.DIRECT
    if came_by == EVENTS_EXCHANGE:
        return DeadLetterKind.WEBHOOK
    if "tq-token" in headers:
        return DeadLetterKind.TASK
    if properties.content_type == CONTENT_TYPE or came_by == OUTCOMES_EXCHANGE:
        return DeadLetterKind.OUTCOME
    return DeadLetterKind.DIRECT


def _died(properties: BasicProperties, headers: Mapping[str, Any]) -> float | None:
    for death in _deaths(headers):
        at = death.get("time")
        if isinstance(at, datetime):
            return at.replace(tzinfo=UTC).timestamp()
    stamp = properties.timestamp
    if isinstance(stamp, datetime):
        return stamp.replace(tzinfo=UTC).timestamp()
    # Some publishers write milliseconds there: no time that anybody could show.
    return float(stamp) if isinstance(stamp, int) and stamp < _YEAR_10000 else None


def _reason(headers: Mapping[str, Any]) -> str:
    error = headers.get(ERROR_HEADER)
    if error:
        return str(error)
    for death in _deaths(headers):
        return f"{death.get('reason', 'unknown')} by the broker, queue {death.get('queue', '')}"
    return ""


def _deaths(headers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    deaths = headers.get("x-death")
    if not isinstance(deaths, list):
        return []
    return [death for death in deaths if isinstance(death, Mapping)]
