"""The operator's commands: a channel of the consumer's connection, on the control stream.

Invariant: work is consumed only once every earlier command has been seen. So on each connection the
consumer first finds the end of the stream, reads up to there, and reports that it has caught up;
from then on it handles commands as they come. After a reconnect it continues after the last command
seen. A stream that ends before that was deleted and declared again, and is read from its beginning.
Commands that the stream's retention has dropped are lost to all: the broker continues with the
oldest it has.

Commands about attempts hold whenever they were sent. A command to drain holds for the process that
reads it live. One that was sent before this process had caught up for the first time was for
another process of the same name (a restarted container, or a recreated pod of a StatefulSet) and
never counts here, however often the stream is read.

The stream may not exist yet: only the operator declares it, so this retries until it exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.contract.command import WorkerCommand, decode
from taskqueue.contract.names import CONTROL_STREAM, ContractError
from taskqueue.logs import EventLog
from taskqueue.model.command import CommandKind

log = EventLog("taskqueue.worker")

#: A stream is sent in chunks: with a much lower prefetch, each few messages take a round trip.
PREFETCH = 500

#: A stream that sends nothing for this long is empty. The operator leaves none empty: see
#: `taskqueue.contract.command.FIRST_COMMAND`.
EMPTY_SECONDS = 5.0

#: Round trips without a delivery after which the stream's last chunk counts as read.
_QUIET_ROUNDS = 2

#: A stream that sends nothing for this long before its end is consumed again: retention may have
#: dropped that end.
_STALLED_SECONDS = 10.0

_NOT_ALLOWED, _NOT_FOUND = 403, 404


class CommandConsumer:
    """Consumes the control stream over all connections of a worker.

    Args:
        namespace: of the worker's TaskQueue and pod.
        queue: name of the worker's TaskQueue, to say what permission is missing.
        pod: name of the worker's pod.
        on_command: called with each command about an attempt, on the loop; one may come twice.
        on_drain: called with each command to drain this worker, likewise.
    """

    def __init__(
        self,
        *,
        namespace: str,
        queue: str,
        pod: str,
        on_command: Callable[[WorkerCommand], None],
        on_drain: Callable[[], None],
    ) -> None:
        self._queue = rf"{namespace}\.{queue}"
        self._pod = (namespace, pod)
        self._on_command = on_command
        self._on_drain = on_drain
        #: Whether it has ever caught up: commands to drain count.
        self._live = False
        #: Earlier commands to drain this pod: by message id, or else by offset.
        self._past_drains: set[str | int] = set()
        #: Offset of the last message seen; offsets grow, with gaps.
        self._last_offset: int | None = None
        #: Why commands could not be consumed when that was last logged.
        self._logged_reason = ""

    async def follow(self, connection: Connection, on_caught_up: Callable[[], None]) -> None:
        """Handle commands until the connection is closed.

        Args:
            connection: the consumer's.
            on_caught_up: called when all past commands are known; may be called repeatedly.
        """
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        while not connection.closed.done():
            try:
                reason = await self._follow_once(
                    connection, on_caught_up, on_found=backoff.succeeded
                )
            except ChannelRefused as refusal:
                reason = self._explain_refusal(connection, refusal)
            except BrokerUnavailable:
                return  # the consumer logs what happens to its connection
            if reason != self._logged_reason:
                self._logged_reason = reason
                log.warning("command_consumer.lost", stream=CONTROL_STREAM, reason=reason)
            await asyncio.sleep(backoff.next_delay())

    async def _follow_once(
        self,
        connection: Connection,
        on_caught_up: Callable[[], None],
        *,
        on_found: Callable[[], None],
    ) -> str:
        """Consume on a channel of its own until that ends, and return why."""
        channel = await connection.channel()
        loop = asyncio.get_running_loop()
        cancelled: asyncio.Future[str] = loop.create_future()
        caught_up: asyncio.Future[None] = loop.create_future()

        def on_cancel(reason: str) -> None:
            self._last_offset = None  # deleted: offsets of the next one start at 0
            if not cancelled.done():
                cancelled.set_result(reason)

        try:
            await channel.set_prefetch(PREFETCH)
            end = await find_end(channel)
            on_found()
            if self._last_offset is not None and (end is None or end < self._last_offset):
                self._last_offset = None
            if end is None or end == self._last_offset:
                self.mark_live()
                caught_up.set_result(None)
            start: int | str = "first" if self._last_offset is None else self._last_offset + 1
            reader = _Reader(self, channel, loop, end=end or 0, caught_up=caught_up)
            arguments = {"x-stream-offset": start}
            await channel.consume(
                CONTROL_STREAM, reader.on_delivery, on_cancel, arguments=arguments
            )
            ends: set[asyncio.Future[Any]] = {channel.closed, cancelled}
            if not await reader.wait_until_caught_up(ends):
                return f"the broker sends nothing before offset {end}"
            if caught_up.done() and not channel.closed.done():
                log.info("command_consumer.registered", commands=reader.read_count)
                self._logged_reason = ""
                on_caught_up()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if cancelled.done():
                return cancelled.result()
            code, text = channel.closed.result()
            if not code:
                raise BrokerUnavailable(text)
            return f"{code} {text}"
        finally:
            await channel.close()

    def mark_live(self) -> None:
        """Let commands to drain count from now on: all earlier commands have been read."""
        self._live = True

    def on_message(self, offset: int, message_id: str | None, body: bytes) -> None:
        """Handle one message of the stream, unless it has been handled before."""
        if self._last_offset is not None and offset <= self._last_offset:
            return
        self._last_offset = offset
        try:
            command = decode(body)
        except ContractError as error:
            log.warning("command.invalid", offset=offset, reason=str(error))
            return
        if command.kind is not CommandKind.DRAIN:
            self._on_command(command)
        elif (command.namespace, command.pod) == self._pod:
            self._handle_drain(message_id or offset)

    def _handle_drain(self, identity: str | int) -> None:
        # A consumer that the broker cancelled starts at the first message again.
        if not self._live:
            self._past_drains.add(identity)
        elif identity not in self._past_drains:
            self._on_drain()

    def _explain_refusal(self, connection: Connection, refusal: ChannelRefused) -> str:
        if refusal.code == _NOT_FOUND:
            return (
                f"stream {CONTROL_STREAM} does not exist yet: start the operator, it declares it; "
                "no work is consumed before its commands are known"
            )
        if refusal.code == _NOT_ALLOWED:
            return (
                f"broker user {connection.parameters.username!r} may not read {CONTROL_STREAM}: "
                rf"grant it the read permission ^taskqueue\.({self._queue}|control)$; "
                f"no work is consumed before its commands are known ({refusal.text})"
            )
        return refusal.text


class _Reader:
    """Reads the deliveries of one channel, and acknowledges those of one loop turn together."""

    def __init__(
        self,
        consumer: CommandConsumer,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        *,
        end: int,
        caught_up: asyncio.Future[None],
    ) -> None:
        self._consumer = consumer
        self._channel = channel
        self._loop = loop
        self._end = end
        self._caught_up = caught_up
        self._tag = 0
        self.read_count = 0

    def on_delivery(self, delivery: Delivery) -> None:
        if not self._tag:
            self._loop.call_soon(self._acknowledge)
        self._tag = delivery.delivery_tag
        self.read_count += 1
        if delivery.problem:  # its offset is among what cannot be read
            log.warning("command.invalid", reason=delivery.problem)
            return
        offset = _offset(delivery)
        self._consumer.on_message(offset, delivery.properties.message_id, delivery.body)
        if offset >= self._end and not self._caught_up.done():
            self._consumer.mark_live()
            self._caught_up.set_result(None)

    async def wait_until_caught_up(self, ends: set[asyncio.Future[Any]]) -> bool:
        """Wait until it has caught up, or for one of ``ends``.

        Returns:
            Whether one of these happened; False: the broker has stopped sending before.
        """
        waited_for = {*ends, self._caught_up}
        while True:
            before = self.read_count
            done, _ = await asyncio.wait(
                waited_for, timeout=_STALLED_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if done or self.read_count == before:
                return bool(done)

    def _acknowledge(self) -> None:
        # This removes nothing from a stream: the broker only sends more.
        self._channel.ack(self._tag, multiple=True)
        self._tag = 0


async def find_end(channel: Channel) -> int | None:
    """Return the offset of the last message of the stream, or None: it is empty.

    ``last`` starts with the stream's last chunk, which may hold many messages. The first delivery
    has no time limit of the protocol's: the broker sends nothing of a chunk it has not committed.
    After it, what the broker sends for an acknowledgement it sends before it answers the next
    request: when nothing came within a round trip, the chunk is read.
    """
    end: int | None = None
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_delivery(delivery: Delivery) -> None:
        nonlocal end
        channel.ack(delivery.delivery_tag)
        if delivery.problem:
            return
        end = _offset(delivery)
        if not first.done():
            first.set_result(None)

    arguments = {"x-stream-offset": "last"}
    tag = await channel.consume(
        CONTROL_STREAM, on_delivery, lambda reason: None, arguments=arguments
    )
    waited_for: set[asyncio.Future[Any]] = {first, channel.closed}
    await asyncio.wait(waited_for, timeout=EMPTY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    quiet = 0
    while quiet < _QUIET_ROUNDS:
        before = end
        await channel.declare_queue(CONTROL_STREAM, passive=True)
        quiet = quiet + 1 if end == before else 0
    await channel.cancel(tag)
    return end


def _offset(delivery: Delivery) -> int:
    return int((delivery.properties.headers or {})["x-stream-offset"])
