"""Declares what the operator owns at the broker; nobody else declares.

`operator_topology` and `task_queue_topology` say what there is, in the order of declaring. Whatever
has a passive form is looked at with it first; what is missing is created, and what existed is
checked against the arguments of the contract, which changes nothing: RabbitMQ answers 406 to other
arguments, and that becomes `TopologyConflict`. AMQP cannot look at a binding, but to bind again
changes nothing either. So all of it may be declared at any time, and what somebody has deleted is
there again.

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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.amqp.channel import Channel, ChannelRefused, QueueCounts
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
from taskqueue.contract.outbox import ARCHIVE_OUTBOX, Outbox
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


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable topic exchange."""

    name: str

    async def exists(self, channel: Channel) -> bool:
        """Look passively; False: it does not exist, and the broker has closed the channel."""
        try:
            await channel.declare_exchange(self.name, passive=True)
        except ChannelRefused as refusal:
            if _is_missing(refusal):
                return False
            raise
        return True

    async def declare(self, channel: Channel) -> None:
        """Create it, or check what it is."""
        await channel.declare_exchange(self.name)

    def __str__(self) -> str:
        """Return what it is, and its name."""
        return f"exchange {self.name}"


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, or stream, with the arguments of the contract."""

    name: str
    arguments: Mapping[str, Any]

    async def exists(self, channel: Channel) -> bool:
        """Look passively; False: it does not exist, and the broker has closed the channel."""
        return await ready_messages(channel, self.name) is not None

    async def declare(self, channel: Channel) -> None:
        """Create it, or check its arguments."""
        await channel.declare_queue(self.name, arguments=self.arguments)

    def __str__(self) -> str:
        """Return what it is, and its name."""
        return f"queue {self.name}"


@dataclass(frozen=True, slots=True)
class Binding:
    """Takes what is published to an exchange with a key into a queue."""

    queue: str
    exchange: str
    key: str

    async def declare(self, channel: Channel) -> None:
        """Bind; that changes nothing if it is bound already."""
        await channel.bind_queue(self.queue, self.exchange, self.key)


@dataclass(frozen=True, slots=True)
class ExchangeBinding:
    """Passes what is published to an exchange with a key on to another exchange."""

    destination: str
    source: str
    key: str

    async def declare(self, channel: Channel) -> None:
        """Bind; that changes nothing if it is bound already."""
        await channel.bind_exchange(self.destination, self.source, self.key)


Part = Exchange | Queue | Binding | ExchangeBinding


class TopologyConflict(Exception):
    """An exchange or queue exists with other arguments; the text names it and what to do.

    Attributes:
        name: of the exchange or queue.
    """

    def __init__(self, part: Exchange | Queue, text: str) -> None:
        super().__init__(
            f"{part} exists with other arguments than the operator declares: finish or move "
            f"what is in it, delete it, and it will be declared again ({text})"
        )
        self.name = part.name


def operator_topology(installation: str = DEFAULT_INSTALLATION) -> tuple[Part, ...]:
    """Return the exchanges, the installation's queues, and the control stream.

    The inbox is bound for the installation's own markers; each TaskQueue binds it for more.
    """
    inbox = inbox_queue(installation)
    return (
        *map(Exchange, _EXCHANGES),
        # One binding, and no queue can have the one exchange without the other. A message keeps the
        # name of the exchange it was published to.
        ExchangeBinding(WORK_EXCHANGE, DIRECT_EXCHANGE, _ALL_KEYS),
        Queue(inbox, INBOX_ARGUMENTS),
        Binding(inbox, OUTCOMES_EXCHANGE, marker_key(installation)),
        Queue(heartbeats_queue(installation), HEARTBEATS_ARGUMENTS),
        Queue(CONTROL_STREAM, CONTROL_ARGUMENTS),
    )


def task_queue_topology(
    namespace: str,
    queue: str,
    installation: str = DEFAULT_INSTALLATION,
    *,
    sinks: Iterable[Outbox] = (),
) -> tuple[Part, ...]:
    """Return the dead queue and the work queue of a TaskQueue, and what takes its messages.

    Args:
        namespace: of the TaskQueue.
        queue: its name.
        installation: whose operator gets its events and dead letters.
        sinks: the outboxes of what gets the ends of its Tasks.
    """
    key = routing_key(namespace, queue)
    dead, work = dead_queue(namespace, queue), work_queue(namespace, queue)
    return (
        Queue(dead, DEAD_QUEUE_ARGUMENTS),
        Binding(dead, DEAD_EXCHANGE, key),
        *_report_bindings(namespace, queue, installation),
        *_outboxes(namespace, queue, installation, sinks),
        Queue(work, work_queue_arguments(namespace, queue)),
        Binding(work, WORK_EXCHANGE, key),
    )


async def declare_operator_topology(
    connection: Connection, installation: str = DEFAULT_INSTALLATION
) -> frozenset[str]:
    """Declare what `operator_topology` names.

    Returns:
        The exchanges and queues that were missing and have been created.

    Raises:
        TopologyConflict: one of them exists with other arguments.
        ChannelRefused: the operator's broker user may not declare.
        BrokerUnavailable: the connection is lost.
    """
    return await _declare(connection, operator_topology(installation))


async def declare_task_queue(
    connection: Connection,
    namespace: str,
    queue: str,
    installation: str = DEFAULT_INSTALLATION,
    *,
    sinks: Iterable[Outbox] = (),
) -> bool:
    """Declare what `task_queue_topology` names, with its arguments.

    Args:
        connection: to a broker with the topology of `declare_operator_topology`.
        namespace: see there, as the others.
        queue: see there.
        installation: see there.
        sinks: see there.

    Returns:
        Whether the work queue was missing and has been created: then nothing that was published to
        it before exists any more.

    Raises:
        TopologyConflict: one of them exists with other arguments.
        ChannelRefused: the operator's broker user may not declare.
        BrokerUnavailable: the connection is lost.
    """
    parts = task_queue_topology(namespace, queue, installation, sinks=sinks)
    created = await _declare(connection, parts)
    return work_queue(namespace, queue) in created


async def delete_task_queue(
    connection: Connection,
    namespace: str,
    queue: str,
    installation: str,
    *,
    sinks: Iterable[Outbox] = (ARCHIVE_OUTBOX,),
) -> None:
    """Delete the queues of a TaskQueue and the bindings of its events; none of it need exist.

    ``sinks`` are the outboxes that it has or may have; the other arguments as before.

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
        for sink in sinks:
            for name, _ in sink.queues(namespace, queue, installation):
                await channel.delete_queue(name)
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
        Binding(inbox, OUTCOMES_EXCHANGE, _ALL_KEYS),
        Binding(inbox, DEAD_EXCHANGE, _ALL_KEYS),
        Binding(heartbeats_queue(installation), HEARTBEATS_EXCHANGE, _ALL_KEYS),
    )


async def unbind_outboxes(
    connection: Connection,
    sinks: Iterable[Outbox],
    namespace: str,
    queue: str,
    installation: str,
    *,
    needed: Iterable[Outbox] = (),
) -> None:
    """Let sinks get no more ends of a TaskQueue's Tasks; what their outboxes have stays there.

    What those that are ``needed`` get is left as it is.

    Raises:
        ChannelRefused: the operator's broker user may not unbind.
        BrokerUnavailable: the connection is lost.
    """
    place = (namespace, queue, installation)
    keep = {binding for one in needed for binding in _outbox_bindings(one, *place)}
    old = {binding for one in sinks for binding in _outbox_bindings(one, *place)}
    await _unbind(connection, *(old - keep))


def _outboxes(
    namespace: str, queue: str, installation: str, sinks: Iterable[Outbox]
) -> Iterable[Part]:
    """Return the queues of each outbox, and what takes the ends into it."""
    for sink in sinks:
        for name, arguments in sink.queues(namespace, queue, installation):
            yield Queue(name, arguments)
        yield from _outbox_bindings(sink, namespace, queue, installation)


def _outbox_bindings(
    sink: Outbox, namespace: str, queue: str, installation: str
) -> tuple[Binding, ...]:
    name = sink.name(namespace, queue, installation)
    keys = sink.binding_keys(namespace, queue)
    return tuple(Binding(name, EVENTS_EXCHANGE, key) for key in keys)


def _report_bindings(namespace: str, queue: str, installation: str) -> tuple[Binding, ...]:
    """Return the bindings by which an operator gets to know what becomes of a TaskQueue's work."""
    inbox, events = inbox_queue(installation), events_key(namespace, queue)
    return (
        Binding(inbox, OUTCOMES_EXCHANGE, events),
        Binding(inbox, DEAD_EXCHANGE, routing_key(namespace, queue)),
        Binding(heartbeats_queue(installation), HEARTBEATS_EXCHANGE, events),
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
        found = await Exchange(DIRECT_EXCHANGE).exists(channel)
    finally:
        await channel.close()
    return DIRECT_EXCHANGE if found else WORK_EXCHANGE


async def ready_messages(channel: Channel, queue: str) -> int | None:
    """Count the messages waiting in a queue, without those delivered; None: there is no such queue.

    The broker closes the channel over a missing queue: after None, go on with another.

    Raises:
        ChannelRefused: anything else, such as a queue that exists but has no leader just now.
        BrokerUnavailable: the connection is lost.
    """
    counts = await count_queue(channel, queue)
    return None if counts is None else counts.ready


async def count_queue(channel: Channel, queue: str) -> QueueCounts | None:
    """Count the messages waiting in a queue and its consumers; otherwise as `ready_messages`."""
    try:
        return await channel.count_queue(queue)
    except ChannelRefused as refusal:
        if _is_missing(refusal):
            return None
        raise


def _is_missing(refusal: ChannelRefused) -> bool:
    # By its text: the broker answers 404 for a queue without a leader, too.
    return refusal.text.startswith(("NOT_FOUND - no queue ", "NOT_FOUND - no exchange "))


async def _declare(connection: Connection, parts: Iterable[Part]) -> frozenset[str]:
    """Declare in this order, and return the names of what was missing, without the bindings."""
    created: set[str] = set()
    channel = await connection.channel()
    try:
        for part in parts:
            if isinstance(part, Exchange | Queue) and not await part.exists(channel):
                created.add(part.name)
                channel = await connection.channel()
            try:
                await part.declare(channel)
            except ChannelRefused as refusal:
                if refusal.code == _PRECONDITION_FAILED and isinstance(part, Exchange | Queue):
                    raise TopologyConflict(part, refusal.text) from refusal
                raise
    finally:
        await channel.close()
    return frozenset(created)


async def _unbind(connection: Connection, *bindings: Binding) -> None:
    for binding in bindings:
        channel = await connection.channel()
        try:
            await channel.unbind_queue(binding.queue, binding.exchange, binding.key)
        except ChannelRefused as refusal:
            if not _is_missing(refusal):
                raise
        finally:
            await channel.close()
