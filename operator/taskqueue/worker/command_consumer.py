"""Orders come in by this: a channel of the consume connection, on the stream of the operator.

Invariant: work is consumed only once every order given before has been seen. So on each connection
the line first learns where the stream ends, reads up to there, and says that it has caught up; from
then on it takes orders as they come. After a reconnect it goes on behind the last order seen; a
stream that ends before that was made anew and is read from its beginning. What the stream's
retention has cut off is gone for everybody: the broker goes on with the oldest there is.

Orders about attempts hold whenever they were given. An order to drain holds for the process that
read it live: one that was there before this process had caught up for the first time was for
another of the same name (a pod whose container was started again, or that a StatefulSet has made
anew), and never counts here, however often the stream is read.

The stream may not exist yet: only the operator declares, so the line looks and waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.contract.command import CommandKind, WorkerCommand, decode
from taskqueue.contract.names import CONTROL_STREAM, ContractError
from taskqueue.logs import EventLog

log = EventLog("taskqueue.worker")

#: A stream is read in chunks: much less than this and reading back takes a round trip for each few.
PREFETCH = 500

#: Round trips without a delivery after which the stream's last chunk counts as read.
_QUIET_ROUNDS = 2

#: A stream that sends nothing for so long before its end is looked at again: retention may have cut
#: off what was its end.
_STALLED_SECONDS = 10.0

_NOT_ALLOWED, _NOT_FOUND = 403, 404


class CommandConsumer:
    """Follows the stream over all connections of a worker.

    Args:
        namespace: of the worker's TaskQueue and pod.
        queue: name of the worker's TaskQueue, to say what permission is missing.
        pod: name of the worker's pod.
        on_order: called with each order about an attempt, on the loop; one may come twice.
        on_drain: called when the worker is ordered to take no more work, likewise.
    """

    def __init__(
        self,
        *,
        namespace: str,
        queue: str,
        pod: str,
        on_order: Callable[[WorkerCommand], None],
        on_drain: Callable[[], None],
    ) -> None:
        self._queue = rf"{namespace}\.{queue}"
        self._pod = (namespace, pod)
        self._on_order = on_order
        self._on_drain = on_drain
        #: Whether it has ever caught up: orders to drain count.
        self._live = False
        #: Orders to drain this pod from before that: by message id, or else by offset.
        self._past_drains: set[str | int] = set()
        #: Offset of the last message seen; offsets grow, with gaps.
        self._seen: int | None = None
        self._told = ""

    async def follow(self, connection: Connection, on_caught_up: Callable[[], None]) -> None:
        """Take orders until the connection is closed; ``on_caught_up`` may be called repeatedly."""
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        while not connection.closed.done():
            try:
                reason = await self._follow(connection, on_caught_up, on_found=backoff.succeeded)
            except ChannelRefused as problem:
                reason = self._explain(connection, problem)
            except BrokerUnavailable:
                return  # the consume line tells of its connection
            if reason != self._told:
                self._told = reason
                log.warning("control.waiting", stream=CONTROL_STREAM, reason=reason)
            await asyncio.sleep(backoff.next_delay())

    async def _follow(
        self,
        connection: Connection,
        on_caught_up: Callable[[], None],
        *,
        on_found: Callable[[], None],
    ) -> str:
        """Follow on a channel of its own until that ends, and return why."""
        channel = await connection.channel()
        loop = asyncio.get_running_loop()
        cancelled: asyncio.Future[str] = loop.create_future()
        caught_up: asyncio.Future[None] = loop.create_future()

        def on_cancel(reason: str) -> None:
            self._seen = None  # deleted: offsets of the next one begin anew
            if not cancelled.done():
                cancelled.set_result(reason)

        try:
            await channel.set_prefetch(PREFETCH)
            end = await _end(channel)
            on_found()
            if self._seen is not None and (end is None or end < self._seen):
                self._seen = None
            if end is None or end == self._seen:
                self.go_live()
                caught_up.set_result(None)
            begin: int | str = "first" if self._seen is None else self._seen + 1
            reader = _Reader(self, channel, loop, end=end or 0, caught_up=caught_up)
            arguments = {"x-stream-offset": begin}
            await channel.consume(CONTROL_STREAM, reader.take, on_cancel, arguments=arguments)
            ends: set[asyncio.Future[Any]] = {channel.closed, cancelled}
            if not await reader.progresses(ends):
                return f"the broker sends nothing of what was there before offset {end}"
            if caught_up.done() and not channel.closed.done():
                log.info("control.ready", orders=reader.read)
                self._told = ""
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

    def go_live(self) -> None:
        """Take note that all orders from before have been read."""
        self._live = True

    def see(self, offset: int, message_id: str | None, body: bytes) -> None:
        """Take one message of the stream, unless it has been taken before."""
        if self._seen is not None and offset <= self._seen:
            return
        self._seen = offset
        try:
            order = decode(body)
        except ContractError as problem:
            log.warning("order.malformed", offset=offset, reason=str(problem))
            return
        if order.kind is not CommandKind.DRAIN:
            self._on_order(order)
        elif (order.namespace, order.pod) == self._pod:
            self._drain(message_id or offset)

    def _drain(self, identity: str | int) -> None:
        # A consumer the broker cancelled begins at the first again: what is past comes once more.
        if not self._live:
            self._past_drains.add(identity)
        elif identity not in self._past_drains:
            self._on_drain()

    def _explain(self, connection: Connection, refusal: ChannelRefused) -> str:
        if refusal.code == _NOT_FOUND:
            return (
                f"stream {CONTROL_STREAM} does not exist yet: start the operator, it declares it; "
                "no work is taken before its orders are known"
            )
        if refusal.code == _NOT_ALLOWED:
            return (
                f"broker user {connection.parameters.username!r} may not read {CONTROL_STREAM}: "
                rf"grant it the read permission ^taskqueue\.({self._queue}|control)$; "
                f"no work is taken before its orders are known ({refusal.text})"
            )
        return refusal.text


class _Reader:
    """Takes the deliveries of one channel, and acknowledges those of one loop turn together."""

    def __init__(
        self,
        line: CommandConsumer,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        *,
        end: int,
        caught_up: asyncio.Future[None],
    ) -> None:
        self._line = line
        self._channel = channel
        self._loop = loop
        self._end = end
        self._caught_up = caught_up
        self._tag = 0
        self.read = 0

    def take(self, delivery: Delivery) -> None:
        if not self._tag:
            self._loop.call_soon(self._acknowledge)
        self._tag = delivery.delivery_tag
        self.read += 1
        offset = _offset(delivery)
        self._line.see(offset, delivery.properties.message_id, delivery.body)
        if offset >= self._end and not self._caught_up.done():
            self._line.go_live()
            self._caught_up.set_result(None)

    async def progresses(self, ends: set[asyncio.Future[Any]]) -> bool:
        """Wait until it has caught up, or for one of ``ends``; tell whether the broker sends on."""
        waited_for = {*ends, self._caught_up}
        while True:
            before = self.read
            done, _ = await asyncio.wait(
                waited_for, timeout=_STALLED_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if done or self.read == before:
                return bool(done)

    def _acknowledge(self) -> None:
        # A stream forgets nothing by this: it only sends more.
        self._channel.ack(self._tag, multiple=True)
        self._tag = 0


async def _end(channel: Channel) -> int | None:
    """Return the offset of the last message of the stream, or None: it is empty.

    ``last`` begins with the stream's last chunk, which may hold many messages. What the broker
    sends for an acknowledgement it sends before it answers the next request: when nothing came
    within a round trip, the chunk is read.
    """
    end: int | None = None

    def take(delivery: Delivery) -> None:
        nonlocal end
        end = _offset(delivery)
        channel.ack(delivery.delivery_tag)

    arguments = {"x-stream-offset": "last"}
    tag = await channel.consume(CONTROL_STREAM, take, lambda reason: None, arguments=arguments)
    quiet = 0
    while quiet < _QUIET_ROUNDS:
        before = end
        await channel.declare_queue(CONTROL_STREAM, passive=True)
        quiet = quiet + 1 if end == before else 0
    await channel.cancel(tag)
    return end


def _offset(delivery: Delivery) -> int:
    return int((delivery.properties.headers or {})["x-stream-offset"])
