"""Declares what the operator owns at the broker; nobody else declares.

It declares passively first, creates what is missing, and then checks what existed against the
arguments of the contract, which changes nothing: RabbitMQ answers 406 to other arguments, and that
becomes `TopologyConflict`. Declaring is idempotent, so all of it may run at any time.

Order matters: a dead letter without a route is stuck in its queue, and 32 of them stop all
dead-lettering of that queue. So the dead exchange, dead queue and bindings come before the work
queue, whichever of them was missing. The bindings of the inbox do, too: from the first message
on, its end has a route to the operator, and it keeps that for as long as the work queue exists. An
outcome without a route would hold up the worker that has it, and a dead letter would be lost to the
operator.

The inbox and the heartbeats queue belong to an installation, everything else to all that share the
virtual host.
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
    INBOX_ARGUMENTS,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    dead_queue,
    events_key,
    heartbeats_queue,
    inbox_queue,
    marker_key,
    routing_key,
    work_queue,
    work_queue_arguments,
)
from taskqueue.defaults import DEFAULT_INSTALLATION

_PRECONDITION_FAILED = 406

_EXCHANGES = (
    WORK_EXCHANGE,
    DIRECT_EXCHANGE,
    DEAD_EXCHANGE,
    OUTCOMES_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    EVENTS_EXCHANGE,
)

_ALL_KEYS = "#"

#: (queue, exchange, key)
_Binding = tuple[str, str, str]


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


async def declare_operator_topology(
    connection: Connection, installation: str = DEFAULT_INSTALLATION
) -> None:
    """Declare the exchanges, the installation's queues, and the control stream.

    The inbox is bound for the installation's own markers; `declare_task_queue` binds it for more.

    Raises:
        TopologyConflict: one of them exists with other arguments.
        ChannelRefused: the operator's broker user may not declare.
        BrokerUnavailable: the connection is lost.
    """
    for exchange in _EXCHANGES:
        await _ensure_exchange(connection, exchange)
    await _bind_direct_exchange(connection)
    inbox = inbox_queue(installation)
    await _ensure_queue(connection, inbox, INBOX_ARGUMENTS)
    await _bind(connection, (inbox, OUTCOMES_EXCHANGE, marker_key(installation)))
    await _ensure_queue(connection, heartbeats_queue(installation), HEARTBEATS_ARGUMENTS)
    await _ensure_queue(connection, CONTROL_STREAM, CONTROL_ARGUMENTS)


async def declare_task_queue(
    connection: Connection, namespace: str, queue: str, installation: str = DEFAULT_INSTALLATION
) -> bool:
    """Declare the dead queue and the work queue of a TaskQueue, and bind what takes its messages.

    Args:
        connection: to a broker with the topology of `declare_operator_topology`.
        namespace: of the TaskQueue.
        queue: its name.
        installation: whose operator gets its events and dead letters.

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
    await _bind(connection, (dead, DEAD_EXCHANGE, key))
    await _bind(connection, *_report_bindings(namespace, queue, installation))
    created = await _ensure_queue(connection, work, work_queue_arguments(namespace, queue))
    await _bind(connection, (work, WORK_EXCHANGE, key))
    return created


async def delete_task_queue(
    connection: Connection, namespace: str, queue: str, installation: str
) -> None:
    """Delete both queues of a TaskQueue and the bindings of its events; none of it need exist.

    The work queue is first: a message that it dead-letters meanwhile still reaches the dead queue.
    The bindings are last: the workers may still report.

    Raises:
        ChannelRefused: the operator's broker user may not delete.
        BrokerUnavailable: the connection is lost.
    """
    channel = await connection.channel()
    try:
        await channel.delete_queue(work_queue(namespace, queue))
        await channel.delete_queue(dead_queue(namespace, queue))
    finally:
        await channel.close()
    await _unbind(connection, *_report_bindings(namespace, queue, installation))


async def unbind_all_keys(connection: Connection, installation: str) -> None:
    """Remove the bindings of an installation's queues that take the messages of every TaskQueue.

    Older operators made them. Each TaskQueue of the installation must have its own before.

    Raises:
        ChannelRefused: the operator's broker user may not unbind.
        BrokerUnavailable: the connection is lost.
    """
    inbox = inbox_queue(installation)
    await _unbind(
        connection,
        (inbox, OUTCOMES_EXCHANGE, _ALL_KEYS),
        (inbox, DEAD_EXCHANGE, _ALL_KEYS),
        (heartbeats_queue(installation), HEARTBEATS_EXCHANGE, _ALL_KEYS),
    )


def _report_bindings(namespace: str, queue: str, installation: str) -> tuple[_Binding, ...]:
    """Return the bindings by which an operator gets to know what becomes of a TaskQueue's work."""
    inbox, events = inbox_queue(installation), events_key(namespace, queue)
    return (
        (inbox, OUTCOMES_EXCHANGE, events),
        (inbox, DEAD_EXCHANGE, routing_key(namespace, queue)),
        (heartbeats_queue(installation), HEARTBEATS_EXCHANGE, events),
    )


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


async def _bind(connection: Connection, *bindings: _Binding) -> None:
    channel = await connection.channel()
    try:
        for queue, exchange, key in bindings:
            await channel.bind_queue(queue, exchange, key)
    finally:
        await channel.close()


async def _unbind(connection: Connection, *bindings: _Binding) -> None:
    for queue, exchange, key in bindings:
        channel = await connection.channel()
        try:
            await channel.unbind_queue(queue, exchange, key)
        except ChannelRefused as refusal:
            if not _is_missing(refusal):
                raise
        finally:
            await channel.close()
