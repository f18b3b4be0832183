"""What all sinks have in common: a loop that drains an outbox, whatever fails, and says what does.

Contract:

* A sink reads its outbox on a channel of its own, and acknowledges what it has passed on. Whatever
  is killed in between comes again.
* After a failure nothing is read for a while, longer each time: so nothing of the outbox is in
  memory while a sink is away, and nobody else waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.controller.queues.conditions.sink_state import SinkState
from taskqueue.controller.tasks.dispatcher import do_nothing
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey

log = EventLog(__name__)

C = TypeVar("C")

#: Passes ends on until something fails; is given what to call when it works.
Serve = Callable[[C, Connection, Callable[[], None]], Coroutine[Any, Any, None]]


class Restart(Exception):
    """A sink is to be served again, at once: its Secret has changed, or it is there again."""


class SinkLoop(Generic[C]):
    """Serves one sink of a TaskQueue, while it is configured and its outbox is declared.

    Args:
        name: of the sink, in logs.
        key: (namespace, name) of the TaskQueue.
        serve: passes ends on until something fails.
        explain: returns what an exception says of the sink; None: that it has a fault.
        longest_pause: between two tries, in seconds.

    Attributes:
        state: how the sink is; None: there is none.
    """

    def __init__(
        self,
        name: str,
        key: QueueKey,
        *,
        serve: Serve[C],
        explain: Callable[[Exception], SinkState | None],
        longest_pause: float,
    ) -> None:
        #: Called when the state is another one; set by whoever serves the TaskQueue.
        self.on_change: Callable[[], None] = do_nothing
        self.state: SinkState | None = None
        self._name = name
        self._key = key
        self._serve = serve
        self._explain = explain
        self._longest_pause = longest_pause
        #: What the loop that runs was started with.
        self._serves: tuple[C | None, Connection | None] = (None, None)
        self._loop: asyncio.Task[None] | None = None

    async def reconcile(self, config: C | None, connection: Connection | None) -> None:
        """Serve the sink as it is configured now.

        Args:
            config: None: there is no such sink.
            connection: that has the outbox; None: it is not declared.
        """
        if config is None:
            self.state = None
        elif self.state is None:
            self.state = SinkState()
        if (config, connection) != self._serves:
            await self.close()
            self._serves = (config, connection)
            if config is not None and connection is not None:
                self._loop = asyncio.create_task(
                    self._run(config, connection), name=f"{self._name} of {'/'.join(self._key)}"
                )

    async def close(self) -> None:
        """Stop; what is not acknowledged stays in the outbox."""
        loop, self._loop = self._loop, None
        self._serves = (None, None)
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    def set_state(self, state: SinkState) -> None:
        """Say how the sink is now."""
        if state != self.state and self.state is not None:
            self.state = state
            self.on_change()

    async def _run(self, config: C, connection: Connection) -> None:
        backoff = Backoff(
            longest_seconds=self._longest_pause,
            held_seconds=HELD_SECONDS,
            clock=asyncio.get_running_loop().time,
        )
        while True:
            try:
                await self._serve(config, connection, backoff.succeeded)
            except Restart:
                continue
            except Exception as problem:  # a sink that ends would never be started again
                self._on_failure(problem)
            await asyncio.sleep(backoff.next_delay())

    def _on_failure(self, problem: Exception) -> None:
        fields: dict[str, Any] = {"namespace": self._key[0], "queue": self._key[1]}
        state = self._explain(problem)
        if isinstance(problem, SecretUnusable):
            self.set_state(SinkState(False, problem.reason, str(problem)))
        elif isinstance(problem, ApiError | BrokerUnavailable | ChannelRefused):
            log.warning(f"{self._name}.interrupted", error=str(problem), **fields)
        elif state is not None:
            self.set_state(state)
            log.warning(f"{self._name}.unavailable", error=str(problem), **fields)
        else:
            self.set_state(SinkState(False, "Failed", "the operator's log says why"))
            log.error(f"{self._name}.failed", exc_info=problem, **fields)


class OutboxConsumer:
    """The messages of an outbox; made by `open`, and closed by its user."""

    def __init__(self, channel: Channel, queue: str, prefetch: int) -> None:
        self._channel = channel
        self._queue = queue
        self._prefetch = prefetch
        self._came: list[Delivery] = []
        self._wake = asyncio.Event()
        self._cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, connection: Connection, queue: str, *, prefetch: int) -> OutboxConsumer:
        """Consume a queue, at most ``prefetch`` messages of which are not acknowledged.

        Raises:
            BrokerUnavailable, ChannelRefused: try again.
        """
        consumer = cls(await connection.channel(), queue, prefetch)
        try:
            await consumer._channel.set_prefetch(prefetch)
            await consumer._channel.consume(queue, consumer._on_delivery, consumer._on_cancel)
        except BaseException:
            await consumer.close()
            raise
        return consumer

    async def next_batch(self, most: int, *, linger_seconds: float = 0.0) -> list[Delivery]:
        """Return what has come, at least one message and at most ``most``.

        Args:
            most: a number of messages.
            linger_seconds: how long others may follow the first.

        Raises:
            BrokerUnavailable: no more will come.
        """
        while True:
            if self._channel.closed.done() or self._cancelled.done():
                raise BrokerUnavailable(f"the consumer of queue {self._queue} has ended")
            if self._came:
                break
            self._wake.clear()
            await _first_of(self._wake.wait(), self._channel.closed, self._cancelled)
        if linger_seconds and len(self._came) < min(most, self._prefetch):
            await asyncio.sleep(linger_seconds)
        batch = self._came[:most]
        del self._came[:most]
        return batch

    async def close(self) -> None:
        """Give what is not acknowledged back."""
        await self._channel.close()

    def _on_delivery(self, delivery: Delivery) -> None:
        self._came.append(delivery)
        self._wake.set()

    def _on_cancel(self, reason: str) -> None:
        if not self._cancelled.done():
            self._cancelled.set_result(reason)


async def _first_of(event: Coroutine[Any, Any, Any], *futures: asyncio.Future[Any]) -> None:
    """Return when one of these is done."""
    waiting = asyncio.ensure_future(event)
    try:
        await asyncio.wait({waiting, *futures}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def first_of_group(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first exception of a group, which may have groups in it."""
    first = group.exceptions[0]
    return first_of_group(first) if isinstance(first, ExceptionGroup) else first
