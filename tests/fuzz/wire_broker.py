"""Stands in for RabbitMQ at the level of bytes: what the process under test reads is AMQP.

The real connections, channels and publishers run on it. It answers every request, confirms every
publish, hands raw properties on as they came, and remembers what is unacknowledged. What it sends
arrives in pieces that a test cuts.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pika import frame
from pika import spec as amqp

from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerParameters

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQ")
_METHOD, _HEADER, _BODY = 1, 2, 3
_END = b"\xce"
_CLOSE_OK = b"\x00\x14\x00\x29"
#: What RabbitMQ and pika agree on.
FRAME_MAX = 128 * 1024

#: Cuts what is sent into the pieces that arrive.
Cut = Callable[[bytes], list[bytes]]


@dataclass(frozen=True)
class RawMessage:
    """A message as the broker passes it on.

    Attributes:
        properties: flags and values, encoded.
    """

    exchange: bytes
    key: bytes
    properties: bytes
    body: bytes


@dataclass(frozen=True)
class Settlement:
    """What a consumer did with a delivery: ``ack``, ``nack`` or ``reject``."""

    verb: str
    message: RawMessage
    requeue: bool = False


@dataclass
class WireBroker:
    """The broker of all connections that `connect` makes.

    Attributes:
        published: every message, in order; `on_published` is called with each.
        settled: what became of deliveries.
        cut: applied to everything that is sent.
        missing: exchanges that do not exist: who names one has his channel closed.
        refused: what was published to one of them.
    """

    published: list[RawMessage] = field(default_factory=list)
    settled: list[Settlement] = field(default_factory=list)
    cut: Cut = lambda data: [data]
    on_published: Callable[[RawMessage], None] = lambda message: None
    on_consume: Callable[[str], None] = lambda queue: None
    consumers: dict[str, tuple[_WireConnection, int, str]] = field(default_factory=dict)
    connections: list[_WireConnection] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    refused: list[RawMessage] = field(default_factory=list)

    async def connect(self, parameters: BrokerParameters, *, name: str, **_: Any) -> Connection:
        """Take the place of `taskqueue.amqp.connection.connect`."""
        loop = asyncio.get_running_loop()
        connection = Connection(parameters, name, 0, loop)
        wire = _WireConnection(self, connection, loop)
        self.connections.append(wire)
        connection._stream.on_connected(wire)
        await connection._opened
        return connection

    def deliver(self, queue: str, message: RawMessage) -> None:
        """Send a message to the consumer of a queue."""
        wire, channel, tag = self.consumers[queue]
        wire.deliver(channel, tag, message)

    @property
    def unacknowledged(self) -> list[RawMessage]:
        """What consumers have and have not settled."""
        return [each for wire in self.connections for each in wire.unacknowledged.values()]


class _WireConnection(asyncio.Transport):
    """The broker's end of one connection, which is the transport of the other end."""

    def __init__(
        self, broker: WireBroker, connection: Connection, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self.unacknowledged: dict[tuple[int, int], RawMessage] = {}
        self._broker = broker
        self._connection = connection
        self._loop = loop
        self._tags = itertools.count(1)
        self._confirming: dict[int, itertools.count[int]] = {}
        #: Of each channel: the publish that is arriving.
        self._publish: dict[int, tuple[bytes, bytes]] = {}
        self._content: dict[int, tuple[bytes, int, bytes]] = {}
        self._closing = False
        #: Channels that this side has closed, until the other side agrees.
        self._closing_channels: set[int] = set()

    # The transport.

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._connection._stream.on_lost, None)

    close = abort

    def write(self, data: Any) -> None:
        if data.startswith(b"AMQP"):
            self.send(0, amqp.Connection.Start(0, 9, {}, "PLAIN", "en_US"))
            return
        at = 0
        while at < len(data):
            kind, channel, size = _FRAME.unpack_from(data, at)
            payload = bytes(data[at + 7 : at + 7 + size])
            assert data[at + 7 + size] == _END[0]
            assert size + 8 <= FRAME_MAX, "a frame is larger than was agreed"
            self._on_frame(kind, channel, payload)
            at += size + 8

    # To the process under test.

    def send(self, channel: int, method: Any) -> None:
        """Answer in the next turn of the loop."""
        self._loop.call_soon(self.receive, frame.Method(channel, method).marshal())

    def receive(self, data: bytes) -> None:
        """Let data arrive, piece by piece."""
        for piece in self._broker.cut(data):
            if not self._closing:
                self._connection._stream.on_data(piece)

    def deliver(self, channel: int, consumer: str, message: RawMessage) -> None:
        tag = next(self._tags)
        self.unacknowledged[channel, tag] = message
        self.receive(encoded_delivery(channel, consumer, tag, message))

    # From the process under test.

    def _on_frame(self, kind: int, channel: int, payload: bytes) -> None:
        if channel in self._closing_channels:
            if kind == _METHOD and payload[:4] == _CLOSE_OK:
                self._closing_channels.remove(channel)
        elif kind == _METHOD:
            if payload[:4] == b"\x00\x3c\x00\x28":
                self._on_publish(channel, payload)
            else:
                method = amqp.methods[struct.unpack_from(">I", payload)[0]]()
                method.decode(payload, 4)
                self._on_method(channel, method)
        elif kind == _HEADER:
            size = _CONTENT.unpack_from(payload)[2]
            self._content[channel] = payload[_CONTENT.size :], size, b""
            self._on_content(channel)
        elif kind == _BODY:
            properties, size, body = self._content[channel]
            self._content[channel] = properties, size, body + payload
            self._on_content(channel)

    def _on_publish(self, channel: int, payload: bytes) -> None:
        exchange = payload[7 : 7 + payload[6]]
        at = 7 + payload[6]
        self._publish[channel] = exchange, payload[at + 1 : at + 1 + payload[at]]

    def _on_content(self, channel: int) -> None:
        properties, size, body = self._content[channel]
        if len(body) < size:
            return
        exchange, key = self._publish.pop(channel)
        message = RawMessage(exchange, key, properties, body)
        if exchange.decode() in self._broker.missing:
            self._broker.refused.append(message)
            self._close_channel(channel, exchange.decode())
            return
        amqp.BasicProperties().decode(properties)  # a broker closes the connection otherwise
        self._broker.published.append(message)
        if channel in self._confirming:
            self.send(channel, amqp.Basic.Ack(next(self._confirming[channel])))
        self._broker.on_published(message)

    def _on_method(self, channel: int, method: Any) -> None:
        match method:
            case amqp.Connection.StartOk():
                self.send(channel, amqp.Connection.Tune(2047, FRAME_MAX, 0))
            case amqp.Connection.Close():
                self.send(channel, amqp.Connection.CloseOk())
                self._loop.call_soon(self.abort)
            case amqp.Basic.Consume():
                self._broker.consumers[method.queue] = self, channel, method.consumer_tag
                self.send(channel, amqp.Basic.ConsumeOk(method.consumer_tag))
                self._loop.call_soon(self._broker.on_consume, method.queue)
            case amqp.Basic.Cancel():
                self.send(channel, amqp.Basic.CancelOk(method.consumer_tag))
            case amqp.Exchange.Declare() if method.exchange in self._broker.missing:
                self._close_channel(channel, method.exchange)
            case amqp.Queue.Declare():
                self.send(channel, amqp.Queue.DeclareOk(method.queue, 0, 0))
            case amqp.Queue.Delete() | amqp.Queue.Purge():
                self.send(channel, amqp.methods[method.INDEX + 1](0))
            case amqp.Basic.Ack() | amqp.Basic.Nack() | amqp.Basic.Reject():
                self._on_settled(channel, method)
            case amqp.Confirm.Select():
                self._confirming[channel] = itertools.count(1)
                self.send(channel, amqp.Confirm.SelectOk())
            case _ if method.synchronous:
                self.send(channel, amqp.methods[method.INDEX + 1]())

    def _close_channel(self, channel: int, exchange: str) -> None:
        self._closing_channels.add(channel)
        self._confirming.pop(channel, None)
        self._publish.pop(channel, None)
        reason = f"NOT_FOUND - no exchange '{exchange}' in vhost '/'"
        self.send(channel, amqp.Channel.Close(404, reason, 0, 0))

    def _on_settled(self, channel: int, method: Any) -> None:
        until = method.delivery_tag
        tags = [until]
        if getattr(method, "multiple", False):
            tags = [
                tag for number, tag in self.unacknowledged if number == channel and tag <= until
            ]
        for tag in tags:
            # A tag that is unknown ends the channel at a real broker: it was settled twice.
            message = self.unacknowledged.pop((channel, tag))
            verb = type(method).__name__.lower()
            requeue = getattr(method, "requeue", False)
            self._broker.settled.append(Settlement(verb, message, requeue))


def encoded_delivery(channel: int, consumer: str, tag: int, message: RawMessage) -> bytes:
    """Return the frames of a Basic.Deliver, as a broker writes them."""
    method = struct.pack(">HH", 60, 60) + _short(consumer.encode()) + struct.pack(">QB", tag, 0)
    payload = method + _short(message.exchange) + _short(message.key)
    frames = encoded_frame(_METHOD, channel, payload)
    header = _CONTENT.pack(60, 0, len(message.body)) + message.properties
    frames += encoded_frame(_HEADER, channel, header)
    for at in range(0, len(message.body), FRAME_MAX - 8):
        frames += encoded_frame(_BODY, channel, message.body[at : at + FRAME_MAX - 8])
    return frames


def encoded_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return one frame."""
    return _FRAME.pack(kind, channel, len(payload)) + payload + _END


def _short(text: bytes) -> bytes:
    return bytes((len(text),)) + text
