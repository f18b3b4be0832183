"""Declares what the operator owns at the broker; nobody else declares.

It declares passively first, creates what is missing, and then checks what existed against the
arguments of the contract, which changes nothing: RabbitMQ answers 406 to other arguments, and that
becomes `TopologyConflict`. Declaring is idempotent, so all of it may run at any time.

Order matters: a dead letter without a route is stuck in its queue, and 32 of them stop all
dead-lettering of that queue. So the dead exchange, dead queue and bindings come before the work
queue, whichever of them was missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.amqp.channel import Channel, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.contract.names import (
    CONTROL_ARGUMENTS,
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    DEAD_QUEUE_ARGUMENTS,
    DIRECT_EXCHANGE,
    EVENTS_EXCHANGE,
    HEARTBEATS_ARGUMENTS,
    HEARTBEATS_EXCHANGE,
    HEARTBEATS_QUEUE,
    INBOX_ARGUMENTS,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    dead_queue,
    routing_key,
    work_queue,
    work_queue_arguments,
)

_PRECONDITION_FAILED = 406

_EXCHANGES = (
    WORK_EXCHANGE,
    DIRECT_EXCHANGE,
    DEAD_EXCHANGE,
    OUTCOMES_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    EVENTS_EXCHANGE,
)

#: Every key: the inbox takes all outcomes and all dead letters.
_ALL_KEYS = "#"


class TopologyConflict(Exception):
    """An exchange or queue exists with other arguments; the text names it and what to do.

    Attributes:
        name: of the exchange or queue.
    """

    def __init__(self, kind: str, name: str, text: str) -> None:
        super().__init__(
            f"{kind} {name} exists with other arguments than the operator declares: finish or move "
            f"what is in it, delete it, and it will be declared again ({text})"
        )
        self.name = name


async def declare_operator_topology(connection: Connection) -> None:
    """Declare the exchanges, the operator's queues and their bindings, and the control stream.

    Raises:
        TopologyConflict: one of them exists with other arguments.
        ChannelRefused: the operator's broker user may not declare.
        BrokerUnavailable: the connection is lost.
    """
    for exchange in _EXCHANGES:
        await _ensure_exchange(connection, exchange)
    await _bind_direct_exchange(connection)
    await _ensure_queue(connection, INBOX_QUEUE, INBOX_ARGUMENTS)
    await _bind(connection, INBOX_QUEUE, {OUTCOMES_EXCHANGE: _ALL_KEYS, DEAD_EXCHANGE: _ALL_KEYS})
    await _ensure_queue(connection, HEARTBEATS_QUEUE, HEARTBEATS_ARGUMENTS)
    await _bind(connection, HEARTBEATS_QUEUE, {HEARTBEATS_EXCHANGE: _ALL_KEYS})
    await _ensure_queue(connection, CONTROL_STREAM, CONTROL_ARGUMENTS)


async def declare_task_queue(connection: Connection, namespace: str, queue: str) -> bool:
    """Declare the dead queue and the work queue of a TaskQueue, and bind both.

    Returns:
        Whether the work queue was missing and has been created: then nothing that was published to
        it before exists any more.

    Raises:
        TopologyConflict: one of them exists with other arguments.
        ChannelRefused: the operator's broker user may not declare.
        BrokerUnavailable: the connection is lost.
    """
    key = routing_key(namespace, queue)
    dead, work = dead_queue(namespace, queue), work_queue(namespace, queue)
    await _ensure_queue(connection, dead, DEAD_QUEUE_ARGUMENTS)
    await _bind(connection, dead, {DEAD_EXCHANGE: key})
    created = await _ensure_queue(connection, work, work_queue_arguments(namespace, queue))
    await _bind(connection, work, {WORK_EXCHANGE: key})
    return created


async def find_direct_exchange(connection: Connection) -> str:
    """Return the exchange for direct messages: that of work where no operator has declared its own.

    Older operators declare none, and take direct messages by the exchange for work.

    Raises:
        ChannelRefused: the broker refuses the question.
        BrokerUnavailable: the connection is lost.
    """
    channel = await connection.channel()
    try:
        await channel.declare_exchange(DIRECT_EXCHANGE, passive=True)
    except ChannelRefused as refusal:
        if _is_missing(refusal):
            return WORK_EXCHANGE
        raise
    finally:
        await channel.close()
    return DIRECT_EXCHANGE


async def ready_messages(channel: Channel, queue: str) -> int | None:
    """Count the messages waiting in a queue, without those delivered; None: there is no such queue.

    The broker closes the channel over a missing queue: after None, go on with another.

    Raises:
        ChannelRefused: anything else, such as a queue that exists but has no leader just now.
        BrokerUnavailable: the connection is lost.
    """
    try:
        return await channel.declare_queue(queue, passive=True)
    except ChannelRefused as refusal:
        if _is_missing(refusal):
            return None
        raise


def _is_missing(refusal: ChannelRefused) -> bool:
    # By its text: the broker answers 404 for a queue without a leader, too.
    return refusal.text.startswith(("NOT_FOUND - no queue ", "NOT_FOUND - no exchange "))


async def _ensure_exchange(connection: Connection, name: str) -> None:
    channel = await connection.channel()
    try:
        try:
            await channel.declare_exchange(name, passive=True)
        except ChannelRefused as refusal:
            if not _is_missing(refusal):
                raise
            channel = await connection.channel()
        await channel.declare_exchange(name)
    except ChannelRefused as refusal:
        if refusal.code == _PRECONDITION_FAILED:
            raise TopologyConflict("exchange", name, refusal.text) from refusal
        raise
    finally:
        await channel.close()


async def _ensure_queue(connection: Connection, name: str, arguments: Mapping[str, Any]) -> bool:
    channel = await connection.channel()
    created = False
    try:
        if await ready_messages(channel, name) is None:
            created = True
            channel = await connection.channel()
        await channel.declare_queue(name, arguments=arguments)
    except ChannelRefused as refusal:
        if refusal.code == _PRECONDITION_FAILED:
            raise TopologyConflict("queue", name, refusal.text) from refusal
        raise
    finally:
        await channel.close()
    return created


async def _bind_direct_exchange(connection: Connection) -> None:
    # One binding, and no queue can have the one exchange without the other. A message keeps the
    # name of the exchange it was published to.
    channel = await connection.channel()
    try:
        await channel.bind_exchange(WORK_EXCHANGE, DIRECT_EXCHANGE, _ALL_KEYS)
    finally:
        await channel.close()


async def _bind(connection: Connection, queue: str, keys: Mapping[str, str]) -> None:
    channel = await connection.channel()
    try:
        for exchange, key in keys.items():
            await channel.bind_queue(queue, exchange, key)
    finally:
        await channel.close()
