"""An AMQP channel with awaitable replies.

The broker answers a mistake (no such queue, other arguments, no permission) by closing the channel;
whoever waits for a reply then gets `ChannelRefused`, and `closed` is done. A channel cannot be
reopened: open another. Deliveries, acknowledgements and publishes are plain calls, so that many
thousand a second cost neither a task nor a Future each.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pika import exceptions
from pika.spec import BasicProperties

#: What pika raises for a property or header that has a wrong type, or is too long or too large.
_NOT_ENCODABLE = (
    exceptions.AMQPError,
    AssertionError,
    AttributeError,
    TypeError,
    UnicodeError,
    struct.error,
)

#: How long a close handshake may take, in seconds; then the caller goes on without it.
CLOSE_SECONDS = 3.0


class BrokerUnavailable(Exception):
    """The broker cannot be reached or the connection is lost; the text says where and why."""


class ChannelRefused(Exception):
    """The broker closed the channel over a request.

    Attributes:
        code: of AMQP: 403 no permission, 404 not found, 406 other arguments than at declaring.
        text: the broker's own words.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"the broker closed the channel: {code} {text}")
        self.code = code
        self.text = text


_NO_PROPERTIES = BasicProperties()


class QueueCounts(NamedTuple):
    """What a queue has: messages that wait in it, and consumers."""

    ready: int
    consumers: int


@dataclass(slots=True, frozen=True)
class Delivery:
    """One message from a queue; acknowledge it on the channel it came from.

    Attributes:
        problem: why its routing key or properties cannot be read: the latter are empty then. ""
            for a message as it should be.
    """

    channel: Channel
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: BasicProperties
    body: bytes
    problem: str = ""

    def without_content(self) -> Delivery:
        """Return what is needed to acknowledge it: its content may be large."""
        return replace(self, properties=_NO_PROPERTIES, body=b"")


class Channel:
    """A channel of a `Connection`; made by `Connection.channel`.

    Attributes:
        closed: done, with the broker's code and text, when the channel has closed; code 0: this
            side closed it or the connection was lost. Wait with `asyncio.wait` or
            `asyncio.shield`: a task that is cancelled while it awaits a Future cancels the Future.
    """

    __slots__ = ("_address", "_channel", "_consumers", "_loop", "_replies", "closed")

    def __init__(self, channel: Any, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._address = address
        self._loop = loop
        self._replies: set[asyncio.Future[Any]] = set()
        self._consumers: dict[str, tuple[str, Callable[[str], None]]] = {}
        self.closed: asyncio.Future[tuple[int, str]] = loop.create_future()
        channel.add_on_close_callback(self._on_close)
        channel.add_on_cancel_callback(self._on_cancel)

    @property
    def is_open(self) -> bool:
        """Whether anything sent now can still arrive."""
        return bool(self._channel.is_open)

    # Topology.

    async def declare_exchange(
        self, name: str, *, kind: str = "topic", passive: bool = False
    ) -> None:
        """Declare a durable exchange; passive only checks that the name exists.

        Raises:
            ChannelRefused: 404 missing (passive), 406 exists with another kind, 403 not allowed.
            BrokerUnavailable: the connection is lost.
        """
        await self._call(
            lambda done: self._channel.exchange_declare(
                name, exchange_type=kind, passive=passive, durable=True, callback=done
            )
        )

    async def declare_queue(
        self, name: str, *, arguments: Mapping[str, Any] | None = None, passive: bool = False
    ) -> int:
        """Declare a durable queue and return how many messages are ready in it.

        Raises:
            ChannelRefused: 404 missing (passive) or its node is down, 406 exists with other
                arguments, 403 not allowed.
            BrokerUnavailable: the connection is lost.
        """
        return (await self._declare_queue(name, arguments=arguments, passive=passive)).ready

    async def count_queue(self, name: str) -> QueueCounts:
        """Count what a queue has. Raises as `declare_queue`."""
        return await self._declare_queue(name, arguments=None, passive=True)

    async def _declare_queue(
        self, name: str, *, arguments: Mapping[str, Any] | None, passive: bool
    ) -> QueueCounts:
        frame = await self._call(
            lambda done: self._channel.queue_declare(
                name,
                passive=passive,
                durable=True,
                arguments=dict(arguments) if arguments else None,
                callback=done,
            )
        )
        return QueueCounts(int(frame.method.message_count), int(frame.method.consumer_count))

    async def bind_queue(self, queue: str, exchange: str, key: str) -> None:
        """Bind a queue; idempotent. Raises as `declare_queue`."""
        await self._call(lambda done: self._channel.queue_bind(queue, exchange, key, callback=done))

    async def bind_exchange(self, destination: str, source: str, key: str) -> None:
        """Pass on to an exchange what reaches another; idempotent. Raises as `declare_queue`."""
        await self._call(
            lambda done: self._channel.exchange_bind(destination, source, key, callback=done)
        )

    async def unbind_queue(self, queue: str, exchange: str, key: str) -> None:
        """Remove a binding. Raises as `declare_queue`."""
        await self._call(
            lambda done: self._channel.queue_unbind(queue, exchange, key, callback=done)
        )

    async def purge_queue(self, queue: str) -> int:
        """Delete the ready messages and return how many. Raises as `declare_queue`."""
        frame = await self._call(lambda done: self._channel.queue_purge(queue, callback=done))
        return int(frame.method.message_count)

    async def delete_queue(self, queue: str) -> int:
        """Delete with all messages and return how many; a missing queue is no error."""
        frame = await self._call(lambda done: self._channel.queue_delete(queue, callback=done))
        return int(frame.method.message_count)

    # Consuming.

    async def set_prefetch(self, count: int) -> None:
        """Limit the unacknowledged deliveries of each consumer started after this."""
        await self._call(
            lambda done: self._channel.basic_qos(
                prefetch_count=count, global_qos=False, callback=done
            )
        )

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        on_cancel: Callable[[str], None],
        *,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a consumer with manual acknowledgement and return its tag.

        ``on_delivery`` may be called before this returns. What it raises goes to the loop's
        exception handler and leaves the delivery unacknowledged. ``on_cancel`` is called with a
        reason when the broker ends the consumer (its queue was deleted); not for `cancel`, and
        not when the channel closes.

        Raises:
            ChannelRefused: 404 no such queue, 403 not allowed.
            BrokerUnavailable: the connection is lost.
        """

        def deliver(_: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
            try:
                on_delivery(
                    Delivery(
                        self,
                        method.delivery_tag,
                        method.redelivered,
                        method.exchange,
                        method.routing_key,
                        properties,
                        body,
                        method.problem,
                    )
                )
            except Exception as error:
                # It must not reach pika, which would drop the connection with all its consumers.
                self._report(f"on_delivery of queue {queue} failed", error)

        def start(done: Callable[[Any], None]) -> None:
            tag = self._channel.basic_consume(
                queue,
                deliver,
                arguments=dict(arguments) if arguments else None,
                callback=done,
            )
            # Before the reply: the broker's cancel may follow the reply in the same read.
            self._consumers[tag] = (queue, on_cancel)

        frame = await self._call(start)
        return str(frame.method.consumer_tag)

    async def cancel(self, consumer_tag: str) -> None:
        """Stop a consumer. Deliveries that were on their way still reach ``on_delivery``.

        Returns when the broker has confirmed; at once for a consumer that has already ended.
        """
        if self._consumers.pop(consumer_tag, None) is None or not self.is_open:
            return
        try:
            await self._call(lambda done: self._channel.basic_cancel(consumer_tag, callback=done))
        except (BrokerUnavailable, ChannelRefused):
            return  # the consumer ended with its channel

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """Acknowledge one delivery, or all up to it; dropped on a closed channel."""
        if self._channel.is_open:
            self._channel.basic_ack(delivery_tag, multiple)

    def nack(self, delivery_tag: int, *, requeue: bool) -> None:
        """Requeue a delivery, or have it dead-lettered; dropped on a closed channel."""
        if self._channel.is_open:
            self._channel.basic_nack(delivery_tag, False, requeue)

    def reject(self, delivery_tag: int, *, requeue: bool) -> None:
        """Requeue a delivery as failed, or dead-letter it; dropped on a closed channel."""
        if self._channel.is_open:
            self._channel.basic_reject(delivery_tag, requeue)

    # Publishing; use `taskqueue.amqp.publisher` for all that must arrive.

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        *,
        mandatory: bool = False,
    ) -> None:
        """Publish without knowing whether it arrives; dropped on a closed channel.

        Raises:
            ValueError: a header, a property or the routing key cannot be encoded.
        """
        if not self._channel.is_open:
            return
        try:
            self._channel.basic_publish(exchange, key, body, properties, mandatory)
        except _NOT_ENCODABLE as error:
            raise ValueError(
                f"a message for exchange {exchange}, key {key}, cannot be encoded "
                f"(headers cannot have floats): {error!r}"
            ) from error

    async def select_confirms(
        self,
        on_confirm: Callable[[int, bool, bool], None],
        on_return: Callable[[str | None, str], None],
    ) -> None:
        """Let the broker confirm every publish from now on; tags count from 1.

        Args:
            on_confirm: called with tag, multiple, and whether it is an ack.
            on_return: called with message id and reason for an unroutable mandatory message,
                before its ack.
        """

        def returned(_: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
            on_return(
                properties.message_id,
                f"{method.reply_code} {method.reply_text}: exchange {method.exchange}, "
                f"key {method.routing_key}",
            )

        self._channel.add_on_return_callback(returned)
        await self._call(lambda done: self._channel.select_confirms(on_confirm, done))

    async def close(self) -> None:
        """Close with a handshake; after 3 s without an answer the connection's close ends it."""
        if self._channel.is_open:
            self._channel.close()
        if not self.closed.done() and not self._channel.is_closed:
            await asyncio.wait({self.closed}, timeout=CLOSE_SECONDS)

    # Inside.

    async def _call(self, send: Callable[[Callable[[Any], None]], object]) -> Any:
        reply: asyncio.Future[Any] = self._loop.create_future()

        def done(frame: Any) -> None:
            if not reply.done():
                reply.set_result(frame)

        self._replies.add(reply)
        try:
            send(done)
            return await reply
        except exceptions.AMQPError as error:
            raise self._closed_error() from error
        finally:
            self._replies.discard(reply)

    def _closed_error(self) -> Exception:
        code, text = 0, "the channel is closed"
        if self.closed.done() and not self.closed.cancelled():
            code, text = self.closed.result()
        if code:
            return ChannelRefused(code, text)
        return BrokerUnavailable(f"RabbitMQ at {self._address}: {text}")

    def _on_close(self, _: Any, reason: BaseException) -> None:
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            outcome = (int(reason.reply_code), str(reason.reply_text))
        elif isinstance(reason, exceptions.ChannelClosedByClient):
            outcome = (0, "the channel was closed by this process")
        else:
            outcome = (0, explain_close(reason))
        if not self.closed.done():
            self.closed.set_result(outcome)
        self._consumers.clear()
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(self._closed_error())

    def _on_cancel(self, frame: Any) -> None:
        entry = self._consumers.pop(frame.method.consumer_tag, None)
        if entry is None:
            return
        queue, on_cancel = entry
        try:
            on_cancel(f"the broker ended the consumer of queue {queue}: the queue was deleted")
        except Exception as error:
            self._report(f"on_cancel of queue {queue} failed", error)

    def _report(self, message: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error, CALLBACK: True})


#: Set in what the loop's exception handler gets if a callback raised that was called from here.
CALLBACK = "taskqueue-callback"


def explain_close(reason: BaseException) -> str:
    """Return why an open connection ended, for people."""
    if isinstance(reason, exceptions.ConnectionClosedByClient):
        return "the connection was closed by this process"
    if isinstance(reason, exceptions.ConnectionClosedByBroker):
        return f"the broker closed the connection: {reason.reply_code} {reason.reply_text}"
    if isinstance(reason, exceptions.AMQPError) and reason.args:
        return f"the connection was lost: {reason.args[0]}"
    return f"the connection was lost: {reason!r}"
