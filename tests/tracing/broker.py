"""Stands in for RabbitMQ and the pika library: channels that confirm, and deliver to a consumer.

The operator's own `Channel` and `Publisher` run on it. Every declaration succeeds, every queue is
empty, every publish is confirmed in the next turn of the loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel
from taskqueue.contract.names import INBOX_QUEUE, OUTCOMES_EXCHANGE, WORK_EXCHANGE


class Broker:
    """One broker for all connections of a process.

    Attributes:
        work: what was published to the work exchange, as (properties, body).
        on_acknowledged: called with each delivery tag that is acknowledged.
    """

    def __init__(self) -> None:
        self.work: asyncio.Queue[tuple[BasicProperties, bytes]] = asyncio.Queue()
        self.on_acknowledged: Callable[[int], None] = lambda tag: None
        self._inbox: tuple[_PikaChannel, Callable[..., None]] | None = None
        self._tags = itertools.count(1)

    async def connect(self, *_: Any, **__: Any) -> _Connection:
        """Take the place of `taskqueue.amqp.connection.connect`."""
        return _Connection(self)

    def deliver(self, routing_key: str, body: bytes, properties: BasicProperties) -> int:
        """Deliver a message of the outcomes exchange to the inbox's consumer; return its tag."""
        if self._inbox is None:
            raise RuntimeError("nobody consumes the inbox")
        channel, on_message = self._inbox
        tag = next(self._tags)
        method = SimpleNamespace(
            delivery_tag=tag,
            redelivered=False,
            exchange=OUTCOMES_EXCHANGE,
            routing_key=routing_key,
            problem="",
        )
        on_message(channel, method, properties, body)
        return tag


class _Connection:
    """What the operator uses of `taskqueue.amqp.connection.Connection`."""

    def __init__(self, broker: Broker) -> None:
        self.blocked = False
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()

    async def channel(self) -> Channel:
        return Channel(_PikaChannel(self._broker, self._loop), "stand-in", self._loop)

    async def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result("the connection was closed by this process")


class _PikaChannel:
    """What `Channel` uses of a channel of pika."""

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        self.is_open = True
        self.is_closed = False
        self._broker = broker
        self._loop = loop
        self._on_confirm: Callable[[int, bool, bool], None] | None = None
        self._published = itertools.count(1)

    def add_on_close_callback(self, _: Any) -> None:
        """Never called: this channel is not lost."""

    add_on_cancel_callback = add_on_return_callback = add_on_close_callback

    def _answer(self, callback: Callable[[Any], None], **fields: Any) -> None:
        method = SimpleNamespace(
            method=SimpleNamespace(message_count=0, consumer_count=0, **fields)
        )
        self._loop.call_soon(callback, method)

    def exchange_declare(self, *_: Any, callback: Callable[[Any], None], **__: Any) -> None:
        self._answer(callback)

    queue_declare = queue_bind = queue_unbind = exchange_bind = basic_qos = exchange_declare

    def select_confirms(
        self, on_confirm: Callable[[int, bool, bool], None], callback: Callable[[Any], None]
    ) -> None:
        self._on_confirm = on_confirm
        self._answer(callback)

    def basic_consume(
        self,
        queue: str,
        on_message: Callable[..., None],
        *,
        callback: Callable[[Any], None],
        **_: Any,
    ) -> str:
        if queue == INBOX_QUEUE:
            self._broker._inbox = (self, on_message)
        self._answer(callback, consumer_tag=queue)
        return queue

    def basic_publish(
        self, exchange: str, key: str, body: bytes, properties: BasicProperties, _: bool
    ) -> None:
        if self._on_confirm is not None:
            self._loop.call_soon(self._on_confirm, next(self._published), False, True)
        if exchange == WORK_EXCHANGE:
            self._broker.work.put_nowait((properties, body))
        elif exchange == OUTCOMES_EXCHANGE:  # the operator's marker
            self._broker.deliver(key, body, properties)

    def basic_ack(self, delivery_tag: int, _: bool) -> None:
        self._broker.on_acknowledged(delivery_tag)

    def close(self) -> None:
        self.is_open, self.is_closed = False, True
