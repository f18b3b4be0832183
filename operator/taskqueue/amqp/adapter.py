"""pika's protocol engine on an asyncio transport, of either asyncio or uvloop.

pika offers its adapters a small set of methods to override (`_adapter_…`) and three to call (stream
connected, data available, stream terminated). This adapter replaces `AsyncioConnection`, so that
asyncio itself does the rest: name resolution and TLS with one timeout for all of it, cancellation
that closes the socket, large reads, and no traceback in the log for an unreachable broker.

What differs from pika's own adapters:

* Frames written in one turn of the loop leave in one write at the start of the next.
* Deliveries, publishes, acknowledgements and confirms do not go through pika's objects: see
  `taskqueue.amqp.frames`.
* A connection is closed after two heartbeat intervals of silence (pika: up to 2 x (interval +
  5 s)), and `silent_seconds` can be read at any time.
* A delivery that arrives while its consumer is being cancelled is handed to the consumer. pika
  rejects it, and a quorum queue counts that as a failed delivery.

Nothing else in the package touches pika's internals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pika.channel
import pika.connection
from pika import exceptions
from pika.spec import BasicProperties, Confirm

from taskqueue.amqp import frames

#: Frames are written at once when this many bytes are queued, to keep the broker busy during long
#: turns.
_JOIN_LIMIT_BYTES = 128 * 1024

#: The first byte an AMQP 0-9-1 broker may send: of a method frame, or of the protocol it wants.
_FIRST_BYTES = b"\x01A"

#: Encoded publish frames that are cached; a process needs a few for each TaskQueue.
_CACHED_ADDRESSES = 1000


class StreamConnection(pika.connection.Connection):  # type: ignore[misc]
    """One AMQP connection; the caller passes `protocol` to `loop.create_connection`."""

    def __init__(
        self,
        parameters: pika.connection.Parameters,
        loop: asyncio.AbstractEventLoop,
        *,
        on_open: Callable[[Any], None],
        on_open_error: Callable[[Any, BaseException], None],
        on_close: Callable[[Any, BaseException], None],
    ) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self._chunk_bytes = 0
        self._has_received = False
        #: The beginning of a frame whose rest has not arrived yet.
        self._partial_frame = b""
        self._last_received = loop.time()
        self._silence_timer: asyncio.TimerHandle | None = None
        self.protocol = _StreamProtocol(self)
        super().__init__(
            parameters,
            on_open,
            on_open_error,
            on_close,
            internal_connection_workflow=False,
        )

    @property
    def silent_seconds(self) -> float:
        """How long ago the broker was last heard; with heartbeats at most half an interval."""
        return self._loop.time() - self._last_received

    def abort(self, error: Exception) -> None:
        """Close the socket at once; the callbacks get ``error``. No effect once it is closed."""
        if self._transport is not None:
            self._terminate_stream(error)

    # Called by the asyncio protocol.

    def on_connected(self, transport: asyncio.Transport) -> None:
        """Start the AMQP handshake on a fresh transport."""
        self._transport = transport
        self._on_stream_connected()

    def on_data(self, data: bytes) -> None:
        """Read what the socket gave; bytes that are not frames close the connection."""
        self._last_received = self._loop.time()
        try:
            self._read_frames(data)
        except exceptions.AMQPConnectionError as error:
            self.abort(error)
        except Exception as error:  # of pika or of `frames`, over what no broker sends
            # Its text may quote what came, from whatever listens there.
            why = f"what the broker sent cannot be read ({type(error).__name__})"
            self.abort(exceptions.StreamLostError(why))

    def _read_frames(self, data: bytes) -> None:
        if not self._has_received:
            self._has_received = True
            if data[0] not in _FIRST_BYTES:
                # pika would wait for the rest of a frame that never comes.
                self.abort(exceptions.IncompatibleProtocolError("no AMQP frame came first"))
                return
            if data[0] == _FIRST_BYTES[1]:
                self._on_data_available(data)
                return
        if self._partial_frame:
            data = self._partial_frame + data
        at, end = 0, len(data)
        while end - at >= frames.FRAME.size:
            kind, number, size = frames.FRAME.unpack_from(data, at)
            payload = at + frames.FRAME.size
            tail = payload + size
            if tail >= end:
                if size > frames.LARGEST_PAYLOAD:
                    raise ValueError(f"a frame of {size} bytes")
                break
            channel = self._channels.get(number)
            if (
                channel is not None
                and data[tail] == frames.END
                and channel.feed(kind, data, payload, tail)
            ):
                self.bytes_received += tail + 1 - at
                self.frames_received += 1
            else:
                self._on_data_available(data[at : tail + 1])
            if self._transport is None or self._transport.is_closing():
                return
            at = tail + 1
        self._partial_frame = data[at:]

    def on_lost(self, error: Exception | None) -> None:
        """Report the closed transport to pika; an error of pika's own explains it better."""
        self._transport = None
        self._chunks.clear()
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if self._error is not None:
            self._on_stream_terminated(None)
        elif error is None:
            self._on_stream_terminated(exceptions.StreamLostError("the broker ended it"))
        else:
            self._on_stream_terminated(exceptions.StreamLostError(f"{error}"))

    def emit(self, data: bytes, frame_count: int) -> None:
        """Send encoded frames, and count them as pika does."""
        self.bytes_sent += len(data)
        self.frames_sent += frame_count
        self._adapter_emit_data(data)

    @property
    def largest_body(self) -> int:
        """Bytes of a body that fit in one frame."""
        return int(self._body_max_length)

    # Overrides of pika's adapter methods.

    def _adapter_connect_stream(self) -> None:
        raise NotImplementedError("the caller connects, through loop.create_connection")

    def _adapter_disconnect_stream(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _adapter_call_later(self, delay: float, callback: Callable[[], Any]) -> object:
        return self._loop.call_later(delay, callback)

    def _adapter_remove_timeout(self, timeout_id: Any) -> None:
        timeout_id.cancel()

    def _adapter_add_callback_threadsafe(self, callback: Callable[[], Any]) -> None:
        self._loop.call_soon_threadsafe(callback)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._chunks:
            self._loop.call_soon(self._flush)
        self._chunks.append(data)
        self._chunk_bytes += len(data)
        if self._chunk_bytes >= _JOIN_LIMIT_BYTES:
            self._flush()

    def _flush(self) -> None:
        chunks, self._chunks, self._chunk_bytes = self._chunks, [], 0
        if chunks and self._transport is not None:
            self._transport.write(b"".join(chunks))

    def _create_channel(
        self, channel_number: int, on_open_callback: Callable[[Any], Any] | None
    ) -> _DeliveringChannel:
        return _DeliveringChannel(self, channel_number, on_open_callback)

    def _create_heartbeat_checker(self) -> Any:
        interval = self.params.heartbeat
        if interval:
            self._watch_silence(2.0 * interval)
        return super()._create_heartbeat_checker()

    def _watch_silence(self, limit: float) -> None:
        silent = self.silent_seconds
        if silent >= limit:
            self.abort(exceptions.AMQPHeartbeatTimeout(f"it has sent nothing for {silent:.0f} s"))
        else:
            # Never a busy loop: the remainder may be a rounding error.
            delay = max(limit - silent, 0.05)
            self._silence_timer = self._loop.call_later(delay, self._watch_silence, limit)


class _DeliveringChannel(pika.channel.Channel):  # type: ignore[misc]
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._on_confirm: Callable[[int, bool, bool], None] | None = None
        #: The message that is arriving: its Basic.Deliver, its properties, the parts of its body so
        #: far, and how many bytes of it are missing.
        self._deliver: frames.Deliver | None = None
        self._missing = 0
        self._properties: BasicProperties | None = None
        self._parts: list[bytes] = []
        self._addresses: dict[tuple[str, str, bool], bytes] = {}

    def feed(self, kind: int, data: bytes, at: int, end: int) -> bool:
        """Handle a frame's payload; False: it belongs to neither a delivery nor a confirm."""
        if kind == frames.METHOD:
            method = data[at : at + 4]
            if method == frames.DELIVER:
                self._deliver = frames.read_deliver(data, at)
                return True
            if self._on_confirm is not None and method in (frames.ACK, frames.NACK):
                tag, multiple = frames.read_confirm(data, at)
                self._on_confirm(tag, multiple, method == frames.ACK)
                return True
            return False
        deliver = self._deliver
        if deliver is None:
            return False
        if kind == frames.HEADER:
            self._missing, self._properties, problem = frames.read_header(data, at, end)
            if problem:
                self._deliver = deliver = deliver._replace(problem=problem)
        elif kind == frames.BODY:
            self._missing -= end - at
            self._parts.append(data[at:end])
        else:
            return False
        if self._missing < 0:
            raise exceptions.BodyTooLongError(end - at, end - at + self._missing)
        if not self._missing:
            body = b"".join(self._parts)
            self._parts.clear()
            self._deliver = None
            # A cancelled consumer stays in the table until the broker has answered the cancel.
            consumer = self._consumers.get(deliver.consumer_tag)
            if consumer is not None:
                consumer(self, deliver, self._properties, body)
        return True

    def select_confirms(
        self, on_confirm: Callable[[int, bool, bool], None], done: Callable[[Any], None]
    ) -> None:
        self._on_confirm = on_confirm
        self._rpc(Confirm.Select(), done, [Confirm.SelectOk])

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: BasicProperties,
        mandatory: bool = False,
    ) -> None:
        largest = self.connection.largest_body
        if len(body) > largest:
            self._check_fits(frames.content_frames(self.channel_number, properties, b""), 0)
            super().basic_publish(exchange, routing_key, body, properties, mandatory)
            return
        self._raise_if_not_open()
        key = (exchange, routing_key, mandatory)
        address = self._addresses.get(key)
        if address is None:
            address = frames.publish_frame(
                self.channel_number, exchange, routing_key, mandatory=mandatory
            )
            if len(self._addresses) >= _CACHED_ADDRESSES:
                self._addresses.clear()
            self._addresses[key] = address
        content = frames.content_frames(self.channel_number, properties, body)
        self._check_fits(content, len(body))
        self.connection.emit(address + content, 3 if body else 2)

    def _check_fits(self, content: bytes, body_bytes: int) -> None:
        """Refuse properties that the broker would close the connection over."""
        rest = body_bytes + frames.FRAME.size + 1 if body_bytes else 0
        size, largest = len(content) - rest - frames.FRAME.size - 1, self.connection.largest_body
        if size > largest:
            raise exceptions.AMQPError(
                f"its properties and headers have {size} bytes, a frame takes {largest}"
            )

    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None:
        self._raise_if_not_open()
        ack = frames.ack_frame(self.channel_number, delivery_tag, multiple=multiple)
        self.connection.emit(ack, 1)


class _StreamProtocol(asyncio.Protocol):
    def __init__(self, connection: StreamConnection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.on_connected(transport)  # type: ignore[arg-type]  # a stream's is both

    def data_received(self, data: bytes) -> None:
        self._connection.on_data(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.on_lost(exc)
