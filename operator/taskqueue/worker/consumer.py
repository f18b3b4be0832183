"""The connection for work: a consumer, registered again after any loss.

A closed connection, a closed channel and a consumer that the broker cancelled are one case: earlier
deliveries can no longer be acknowledged, and the consumer is registered again after a back-off. The
queue may not exist yet: only the operator declares it, so the consumer retries until it exists.
Commands come by the same connection, on a channel of their own (`command_consumer`). Work is
consumed once all past commands are known; commands are consumed as long as `Consumer.run` runs,
after a stop too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerConfigurationError
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.logs import EventLog
from taskqueue.worker.broker_source import BrokerSource
from taskqueue.worker.command_consumer import CommandConsumer
from taskqueue.worker.runtime import Runtime

log = EventLog("taskqueue.worker")

_NOT_FOUND = 404


class Consumer:
    """Consumes one queue for as long as the worker lives, and registers again after every loss.

    Args:
        broker: where it is, read for each connection.
        name: the connection's, for people who list connections.
        queue: the one to consume.
        prefetch: until `want_prefetch` changes it.
        runtime: handles deliveries and channel losses, on the loop, without blocking.
        commands: reads the control stream on the same connection.

    Attributes:
        registered: whether work is consumed. Also while no consumer is needed, because as much as
            is wanted is unacknowledged.
        changed_at: when ``registered`` last changed, on the loop's clock.
        prefetch: of all present consumers together.
    """

    def __init__(
        self,
        broker: BrokerSource,
        *,
        name: str,
        queue: str,
        prefetch: int,
        runtime: Runtime,
        commands: CommandConsumer,
    ) -> None:
        self._broker = broker
        self._name = name
        self._queue = queue
        self._runtime = runtime
        self._commands = commands
        #: Whether the past commands are known, on the present connection.
        self._caught_up = False
        self._consuming = False
        self._wanted_prefetch = prefetch
        self.prefetch = 0
        self.registered = False
        #: Set once it has been registered for the first time.
        self.ready = asyncio.Event()
        self.changed_at = asyncio.get_running_loop().time()
        self._stopping = False
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        #: Why there was no consumer when that was last logged.
        self._logged_reason = ""
        self._ready_logged = False

    def want_prefetch(self, count: int) -> None:
        """Change the prefetch soon.

        A prefetch set on a live consumer has no effect. For a higher one another consumer is
        registered beside it, for the difference: a cancel costs each message on its way a
        delivery. For a lower one all are cancelled. What they leave unacknowledged does not count
        for the prefetch of those that follow: these are registered one after another, as it is
        acknowledged, so that there are never more deliveries than wanted.
        """
        if count != self._wanted_prefetch:
            self._wanted_prefetch = count
            self._changed.set()

    def notify(self) -> None:
        """Check a pending prefetch change: fewer deliveries are unacknowledged than before."""
        if self._wanted_prefetch != self.prefetch:
            self._changed.set()

    async def stop(self, timeout_seconds: float = 3.0) -> None:
        """Stop consuming and stay connected, to acknowledge deliveries and consume commands."""
        self._stopping = True
        self._changed.set()
        if not self._consuming:
            self._stopped.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._stopped.wait()
        except TimeoutError:
            log.warning("consumer.stop_timed_out", queue=self._queue)

    async def run(self) -> None:
        """Keep consuming until cancelled; then close the connection.

        Raises:
            BrokerConfigurationError: the broker's settings cannot be used, and cannot change.
        """
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        try:
            while True:
                connection: Connection | None = None
                try:
                    connection = await connect(self._broker.read(), name=self._name)
                    backoff.succeeded()
                    await self._use(connection)
                except BrokerUnavailable as error:
                    self._log_reason(str(error))
                except BrokerConfigurationError as error:
                    self._log_reason(self._broker.explain_or_raise(error))
                finally:
                    if connection is not None:
                        await connection.close()
                await self._pause(backoff.next_delay())
        finally:
            self._stopped.set()

    async def _use(self, connection: Connection) -> None:
        """Consume commands and work until the connection is closed."""
        self._caught_up = False
        self._runtime.on_connected(connection)
        commands = asyncio.ensure_future(self._commands.follow(connection, self._on_caught_up))
        try:
            await self._consume_on(connection)
            if not connection.closed.done():
                await asyncio.wait({connection.closed})
        finally:
            commands.cancel()
            await asyncio.wait({commands})

    def _on_caught_up(self) -> None:
        self._caught_up = True
        self._changed.set()

    async def _consume_on(self, connection: Connection) -> None:
        """Register on one channel after another, until a stop or the connection's end."""
        backoff = Backoff(held_seconds=HELD_SECONDS, clock=asyncio.get_running_loop().time)
        while not self._stopping and not connection.closed.done():
            self._consuming = True
            try:
                reason = await self._consume(connection, on_found=backoff.succeeded)
            except ChannelRefused as refusal:
                reason = refusal.text
                if refusal.code == _NOT_FOUND:
                    reason = f"queue {self._queue} does not exist yet: apply the TaskQueue, the "
                    reason += "operator declares it"
            finally:
                self._consuming = False
            if not self._stopping:
                self._log_reason(reason)
                await self._pause(backoff.next_delay())
        if connection.closed.done():
            self._log_reason(connection.closed.result())

    async def _consume(self, connection: Connection, *, on_found: Callable[[], None]) -> str:
        """Consume on a channel of its own until it ends, and return why."""
        channel = await connection.channel()
        loop = asyncio.get_running_loop()
        cancelled: asyncio.Future[str] = loop.create_future()

        def on_cancel(reason: str) -> None:
            if not cancelled.done():
                cancelled.set_result(reason)

        self._runtime.on_channel_opened(channel)
        try:
            await channel.declare_queue(self._queue, passive=True)
            on_found()
            ended = await self._watch(channel, cancelled, lambda: self._stopping or self._caught_up)
            if ended is not None:
                return ended
            tags: list[str] = []
            self.prefetch = 0
            while not self._stopping:
                room = self._room
                if room > self.prefetch:
                    await channel.set_prefetch(room - self.prefetch)
                    self.prefetch = room
                    tags.append(
                        await channel.consume(self._queue, self._runtime.on_delivery, on_cancel)
                    )
                    log.debug("consumer.added", queue=self._queue, prefetch=self.prefetch)
                    self._set_registered(True)
                ended = await self._watch(channel, cancelled, self._is_due)
                if ended is not None:
                    return ended
                if self._stopping or self._wanted_prefetch < self.prefetch:
                    while tags:
                        await channel.cancel(tags.pop())
                    self._runtime.on_consumers_cancelled()
                    self.prefetch = 0
            self._set_registered(False)
            self._stopped.set()
            # The channel stays open, for acknowledgements.
            return await self._watch(channel, cancelled, lambda: False) or ""
        finally:
            self._set_registered(False)
            self._runtime.on_channel_lost()
            await channel.close()

    @property
    def _room(self) -> int:
        """How much consumers may prefetch, beside what cancelled ones have left."""
        return self._wanted_prefetch - self._runtime.left_over

    def _is_due(self) -> bool:
        """Whether consumers are to be added or cancelled."""
        return self._stopping or self._wanted_prefetch < self.prefetch or self._room > self.prefetch

    async def _watch(
        self,
        channel: Channel,
        cancelled: asyncio.Future[str],
        condition: Callable[[], bool],
    ) -> str | None:
        """Wait for the channel's end, and return why, or for the condition: None."""
        while not condition():
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                waited: set[asyncio.Future[Any]] = {channel.closed, cancelled, changed}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if channel.closed.done():
                code, text = channel.closed.result()
                return f"{code} {text}" if code else text
            if cancelled.done():
                return cancelled.result()
        return None

    def _set_registered(self, registered: bool) -> None:
        if registered != self.registered:
            self.registered = registered
            if registered:
                self.ready.set()
            self.changed_at = asyncio.get_running_loop().time()
            if registered and not self._ready_logged:
                self._ready_logged, self._logged_reason = True, ""
                log.info("consumer.registered", queue=self._queue, prefetch=self.prefetch)

    def _log_reason(self, reason: str) -> None:
        """Log why there is no consumer, once for each reason in a row."""
        self._ready_logged = False
        if reason and reason != self._logged_reason and not self._stopping:
            self._logged_reason = reason
            log.warning("consumer.lost", queue=self._queue, reason=reason)

    async def _pause(self, seconds: float) -> None:
        """Sleep; a stop ends it."""
        if self._stopping:
            await asyncio.sleep(seconds)
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._stopping and (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return
