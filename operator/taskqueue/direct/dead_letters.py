"""The dead queue of a TaskQueue: what people do with the messages that were given up.

Contract:

* A pass looks at the first `WINDOW` letters, which it holds until its channel closes. So passes of
  any kind leave the order as it is: the broker puts what was held behind what others hold, but in
  front of what nobody has seen. Nothing is counted against a letter, the queue has no limit.
* Others may purge, read or redrive at the same time: a pass ends when no more letters come.
* A letter is redriven only if it was a direct message. It is acknowledged when its new copy is
  confirmed by a queue; between the two it may be there twice, never not at all.
* A letter of a Task stays: its Task has gone on, or has ended, by its own retry policy.
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
from taskqueue.contract.names import (
    ERROR_HEADER,
    EXCHANGE_HEADER,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    dead_queue,
    routing_key,
)
from taskqueue.contract.outcome import CONTENT_TYPE
from taskqueue.contract.outgoing import OutgoingMessage, without_broker_headers
from taskqueue.contract.topology import ready_messages

#: Letters looked at in one pass; always as many, or passes of different lengths would reorder them.
WINDOW = 1000
#: Bytes of a body that are kept to be shown.
SHOWN_BYTES = 200
#: After so long without another letter somebody else has the rest.
_IDLE_SECONDS = 2.0
#: A broker that confirms nothing for so long blocks its publishers.
_CONFIRM_SECONDS = 15.0


class NoDeadQueue(Exception):
    """The broker has no such dead queue."""


class DeadLetterKind(StrEnum):
    """What a letter once was."""

    #: Published to the work exchange by anybody.
    DIRECT = "direct"
    #: An attempt of a Task.
    TASK = "task"
    #: An outcome nobody could read.
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message of a dead queue, as shown.

    Attributes:
        id: message id; "" when its publisher gave it none.
        kind: what it once was.
        died: when, in seconds since the epoch; None: nobody wrote it down.
        handler: "" for the default one.
        task: ``namespace/name`` of its Task; "" for none.
        correlation_id: "" for none.
        reason: why it was given up, as far as known.
        size: of the body, in bytes.
        start: the first bytes of the body.
    """

    id: str
    kind: DeadLetterKind
    died: float | None
    handler: str
    task: str
    correlation_id: str
    reason: str
    size: int
    start: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """What a pass saw, oldest first, and how many there were when it began."""

    letters: tuple[DeadLetter, ...]
    total: int


@dataclass(slots=True)
class RedriveResult:
    """What became of the letters of one redrive.

    Attributes:
        redriven: are in the work queue now, and in the dead queue no more.
        kept_tasks: stay, because they are attempts of Tasks.
        kept_outcomes: stay, because they never were work.
        not_chosen: stay, because they were not asked for, or the limit was reached.
        refused: why others stay: the broker's words.
        not_found: ids that no letter looked at has.
        beyond: letters behind the window, which were not looked at.
    """

    redriven: int = 0
    kept_tasks: int = 0
    kept_outcomes: int = 0
    not_chosen: int = 0
    refused: list[str] = field(default_factory=list)
    not_found: tuple[str, ...] = ()
    beyond: int = 0


async def read_letters(connection: Connection, namespace: str, queue: str) -> DeadLetterPage:
    """Look at the letters, and leave them where they are.

    Raises:
        NoDeadQueue: there is none of this name.
        ChannelRefused: the broker user may not read it.
        BrokerUnavailable: the connection is lost, or the queue was deleted meanwhile.
    """
    letters: list[DeadLetter] = []
    channel = await connection.channel()
    try:
        total = await _pass_over(
            channel,
            dead_queue(namespace, queue),
            lambda delivery: letters.append(describe(delivery.properties, delivery.body)),
        )
    finally:
        await channel.close()
    return DeadLetterPage(tuple(letters), total)


async def redrive(
    connection: Connection,
    namespace: str,
    queue: str,
    *,
    ids: frozenset[str] | None = None,
    limit: int = WINDOW,
) -> RedriveResult:
    """Publish direct messages to the work queue again, oldest first.

    Args:
        connection: to the broker.
        namespace: of the TaskQueue.
        queue: its name.
        ids: message ids of the letters to redrive; None: all.
        limit: redrive no more than this.

    Raises: as `read_letters`.
    """
    publisher = await Publisher.open(connection)
    channel = await connection.channel()
    told = RedriveResult()
    run = _Redrive(publisher, routing_key(namespace, queue), ids, limit, told)
    try:
        total = await _pass_over(channel, dead_queue(namespace, queue), run.take)
        await run.settled()
    finally:
        await channel.close()
        await publisher.close()
    told.beyond = max(total - WINDOW, 0)
    told.not_found = tuple(sorted((ids or frozenset()) - run.seen))
    return told


async def count(connection: Connection, namespace: str, queue: str) -> int:
    """Return how many letters there are, those that somebody holds excepted.

    Raises: as `read_letters`.
    """
    channel = await connection.channel()
    try:
        return await _count(channel, dead_queue(namespace, queue))
    finally:
        await channel.close()


async def purge(connection: Connection, namespace: str, queue: str) -> int:
    """Delete all letters but those that somebody just looks at, and return how many.

    Raises: as `read_letters`.
    """
    channel = await connection.channel()
    try:
        await _count(channel, dead_queue(namespace, queue))
        return await channel.purge_queue(dead_queue(namespace, queue))
    finally:
        await channel.close()


def describe(properties: BasicProperties, body: bytes) -> DeadLetter:
    """Read what a message of a dead queue says of itself; anybody may have written it."""
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
        reason=_reason(headers),
        size=len(body),
        start=body[:SHOWN_BYTES],
    )


class _Redrive:
    """Publishes the letters of one pass, and acknowledges each when its copy is confirmed."""

    def __init__(
        self,
        publisher: Publisher,
        key: str,
        ids: Container[str] | None,
        limit: int,
        told: RedriveResult,
    ) -> None:
        self.seen: set[str] = set()
        self._publisher = publisher
        self._key = key
        self._ids = ids
        self._left = limit
        self._told = told
        self._progress = asyncio.Event()

    def take(self, delivery: Delivery) -> None:
        properties = delivery.properties
        kind = _kind(properties, properties.headers or {})
        self.seen.add(properties.message_id or "")
        if self._ids is not None and (properties.message_id or "") not in self._ids:
            self._told.not_chosen += 1
        elif kind is DeadLetterKind.TASK:
            self._told.kept_tasks += 1
        elif kind is DeadLetterKind.OUTCOME:
            self._told.kept_outcomes += 1
        elif self._left <= 0:
            self._told.not_chosen += 1
        else:
            self._left -= 1
            self._publish(delivery)

    def _publish(self, delivery: Delivery) -> None:
        properties = delivery.properties
        headers = without_broker_headers(properties)
        headers.pop(ERROR_HEADER, None)
        copy = OutgoingMessage(
            exchange=WORK_EXCHANGE,
            key=self._key,
            body=delivery.body,
            content_type=properties.content_type,
            type=properties.type,
            correlation_id=properties.correlation_id,
            headers=headers or None,
            timestamp=int(time.time()),
        )

        def settled(verdict: Settled, text: str) -> None:
            if verdict is Settled.CONFIRMED:
                delivery.channel.ack(delivery.delivery_tag)
                self._told.redriven += 1
            else:
                self._told.refused.append(text)
            self._progress.set()

        try:
            self._publisher.publish(copy.exchange, copy.key, copy.body, copy.properties(), settled)
        except ValueError as problem:
            self._told.refused.append(str(problem))

    async def settled(self) -> None:
        """Return when the broker has answered every publish."""
        while self._publisher.outstanding:
            self._progress.clear()
            try:
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await self._progress.wait()
            except TimeoutError:
                raise BrokerUnavailable(
                    f"the broker confirms nothing: {self._told.redriven} letters were redriven, "
                    f"{self._publisher.outstanding} may be in both queues: look for a memory or "
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


async def _pass_over(channel: Channel, queue: str, look: Callable[[Delivery], None]) -> int:
    """Hand the letters there are to ``look``, oldest first; return how many there were.

    They are held until the caller closes the channel, which gives back what is not acknowledged.
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
        if seen <= expected:  # what comes after was given up meanwhile, perhaps for the second time
            look(delivery)
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


def _kind(properties: BasicProperties, headers: Mapping[str, Any]) -> DeadLetterKind:
    if "tq-token" in headers:
        return DeadLetterKind.TASK
    if properties.content_type == CONTENT_TYPE or headers.get(EXCHANGE_HEADER) == OUTCOMES_EXCHANGE:
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
    return float(stamp) if isinstance(stamp, int) else None


def _reason(headers: Mapping[str, Any]) -> str:
    told = headers.get(ERROR_HEADER)
    if told:
        return str(told)
    for death in _deaths(headers):
        return f"{death.get('reason', 'unknown')} by the broker, queue {death.get('queue', '')}"
    return ""


def _deaths(headers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    deaths = headers.get("x-death")
    if not isinstance(deaths, list):
        return []
    return [death for death in deaths if isinstance(death, Mapping)]
