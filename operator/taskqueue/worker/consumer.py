"""The connection work comes in by: a consumer, registered again after whatever ended it.

A closed connection, a closed channel and a consumer the broker cancelled are one case: deliveries
in hand are worthless for acknowledging, and the consumer is registered anew after a back-off. The
queue may not exist yet: only the operator declares, so the line looks and waits. Orders come by the
same connection, on a channel of their own (`command_consumer`): work is consumed once
all of the past ones are known, and orders are taken for as long as the line runs, after a stop too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.logs import EventLog
from taskqueue.worker.command_consumer import CommandConsumer

log = EventLog("taskqueue.worker")

_NOT_FOUND = 404


class DeliveryListener(Protocol):
    """Takes what comes in; called on the loop, must not block."""

    def connected(self, line: Connection) -> None:
        """Channels of this connection follow."""

    def channel_opened(self, channel: Channel) -> None:
        """Deliveries of this channel follow."""

    def delivered(self, delivery: Delivery) -> None:
        """A delivery, to be settled on its channel."""

    def channel_lost(self) -> None:
        """What came by the channel cannot be settled any more; the broker delivers it again."""

    def in_hand(self) -> int:
        """How many deliveries are not settled."""


class Consumer:
    """A consumer on one queue, for as long as the worker lives.

    Attributes:
        registered: whether the consumer is registered with the broker now.
        changed_at: when ``registered`` last changed, on the loop's clock.
        prefetch: the one in effect, or asked for before there is a consumer.
    """

    def __init__(
        self,
        parameters: BrokerParameters,
        *,
        name: str,
        queue: str,
        prefetch: int,
        intake: DeliveryListener,
        control: CommandConsumer,
    ) -> None:
        self._parameters = parameters
        self._name = name
        self._queue = queue
        self._intake = intake
        self._control = control
        #: Whether the past orders are known, on the present connection.
        self._caught_up = False
        self._consuming = False
        self._wanted = prefetch
        self.prefetch = prefetch
        self.registered = False
        #: Set once it has been registered for the first time.
        self.ready = asyncio.Event()
        self.changed_at = asyncio.get_running_loop().time()
        self._stopping = False
        self._poked = asyncio.Event()
        self._stopped = asyncio.Event()
        self._told = ""
        self._unannounced = True

    def want_prefetch(self, count: int) -> None:
        """Change the prefetch soon.

        A prefetch set on a live consumer has no effect. For a higher one another consumer is
        registered beside it, for the difference: a cancel costs what the broker has under way a
        delivery. For a lower one all are cancelled, and one is registered when no more deliveries
        than that are in hand.
        """
        if count != self._wanted:
            self._wanted = count
            self._poked.set()

    def poke(self) -> None:
        """Fewer deliveries are in hand than before; look whether that was waited for."""
        if self._wanted != self.prefetch:
            self._poked.set()

    async def stop(self, timeout_seconds: float = 3.0) -> None:
        """Stop consuming and keep connected: what is in hand is acknowledged, orders are taken."""
        self._stopping = True
        self._poked.set()
        if not self._consuming:
            self._stopped.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._stopped.wait()
        except TimeoutError:
            log.warning("consumer.stop.slow", queue=self._queue)

    async def run(self) -> None:
        """Keep consuming until cancelled; then close the connection.

        Raises:
            BrokerConfigurationError: a certificate or key cannot be read.
        """
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        try:
            while True:
                connection: Connection | None = None
                try:
                    connection = await connect(self._parameters, name=self._name)
                    backoff.succeeded()
                    await self._use(connection)
                except BrokerUnavailable as problem:
                    self._tell(str(problem))
                finally:
                    if connection is not None:
                        await connection.close()
                await self._pause(backoff.next_delay())
        finally:
            self._stopped.set()

    async def _use(self, connection: Connection) -> None:
        """Take orders and consume while the connection lives."""
        self._caught_up = False
        self._intake.connected(connection)
        orders = asyncio.ensure_future(self._control.follow(connection, self._orders_known))
        try:
            await self._consume_on(connection)
            if not connection.closed.done():
                await asyncio.wait({connection.closed})
        finally:
            orders.cancel()
            await asyncio.wait({orders})

    def _orders_known(self) -> None:
        self._caught_up = True
        self._poked.set()

    async def _consume_on(self, connection: Connection) -> None:
        """Register on one channel after the other, until a stop or the connection's end."""
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        while not self._stopping and not connection.closed.done():
            self._consuming = True
            try:
                reason = await self._consume(connection, on_found=backoff.succeeded)
            except ChannelRefused as problem:
                reason = problem.text
                if problem.code == _NOT_FOUND:
                    reason = f"queue {self._queue} does not exist yet: apply the TaskQueue, the "
                    reason += "operator declares it"
            finally:
                self._consuming = False
            if not self._stopping:
                self._tell(reason)
                await self._pause(backoff.next_delay())
        if connection.closed.done():
            self._tell(connection.closed.result())

    async def _consume(self, connection: Connection, *, on_found: Callable[[], None]) -> str:
        """Consume on a channel of its own until it ends, and return why."""
        channel = await connection.channel()
        loop = asyncio.get_running_loop()
        cancelled: asyncio.Future[str] = loop.create_future()

        def on_cancel(reason: str) -> None:
            if not cancelled.done():
                cancelled.set_result(reason)

        self._intake.channel_opened(channel)
        try:
            await channel.declare_queue(self._queue, passive=True)
            on_found()
            ended = await self._watch(channel, cancelled, lambda: self._stopping or self._caught_up)
            if ended is not None:
                return ended
            tags: list[str] = []
            while not self._stopping:
                present = self.prefetch if tags else 0
                self.prefetch = self._wanted
                await channel.set_prefetch(self.prefetch - present)
                tags.append(await channel.consume(self._queue, self._intake.delivered, on_cancel))
                log.debug("consumer.registered", queue=self._queue, prefetch=self.prefetch)
                self._register(True)
                ended = await self._watch(
                    channel, cancelled, lambda: self._stopping or self._wanted != self.prefetch
                )
                if ended is None and not self._stopping and self._wanted > self.prefetch:
                    continue
                self._register(False)
                if ended is not None:
                    return ended
                while tags:
                    await channel.cancel(tags.pop())
                ended = await self._watch(
                    channel,
                    cancelled,
                    lambda: self._stopping or self._intake.in_hand() <= self._wanted,
                )
                if ended is not None:
                    return ended
            self._stopped.set()
            # The channel stays: what is in hand is acknowledged on it.
            return await self._watch(channel, cancelled, lambda: False) or ""
        finally:
            self._register(False)
            self._intake.channel_lost()
            await channel.close()

    async def _watch(
        self,
        channel: Channel,
        cancelled: asyncio.Future[str],
        condition: Callable[[], bool],
    ) -> str | None:
        """Wait for the channel's end, and return why, or for the condition: None."""
        while not condition():
            self._poked.clear()
            poked = asyncio.ensure_future(self._poked.wait())
            try:
                waited: set[asyncio.Future[Any]] = {channel.closed, cancelled, poked}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                poked.cancel()
            if channel.closed.done():
                code, text = channel.closed.result()
                return f"{code} {text}" if code else text
            if cancelled.done():
                return cancelled.result()
        return None

    def _register(self, registered: bool) -> None:
        if registered != self.registered:
            self.registered = registered
            if registered:
                self.ready.set()
            self.changed_at = asyncio.get_running_loop().time()
            if registered and self._unannounced:
                self._unannounced, self._told = False, ""
                log.info("consumer.ready", queue=self._queue, prefetch=self.prefetch)

    def _tell(self, reason: str) -> None:
        """Log why there is no consumer, once for each reason in a row."""
        self._unannounced = True
        if reason and reason != self._told and not self._stopping:
            self._told = reason
            log.warning("consumer.waiting", queue=self._queue, reason=reason)

    async def _pause(self, seconds: float) -> None:
        """Sleep; a stop ends it."""
        if self._stopping:
            await asyncio.sleep(seconds)
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._stopping and (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._poked.clear()
            try:
                async with asyncio.timeout(left):
                    await self._poked.wait()
            except TimeoutError:
                return
