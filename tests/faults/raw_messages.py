"""Messages that no AMQP library would write, and that the broker passes on all the same."""

from __future__ import annotations

import struct

from taskqueue.amqp import frames
from taskqueue.amqp.channel import Channel

_BASIC, _HEADERS = 60, 1 << 13

#: Headers by what is wrong with them: a name of one byte, a type, a value.
UNREADABLE = {
    "a date in milliseconds": b"\x01aT" + struct.pack(">Q", 1_764_000_000_000),
    "the last date of 64 bits": b"\x01aT" + b"\xff" * 8,
    "a header name that is not UTF-8": b"\x01\xe9I\x00\x00\x00\x01",
}


def publish_raw(channel: Channel, exchange: str, key: str, entries: bytes, body: bytes) -> None:
    """Publish a message whose headers are these encoded entries."""
    table = struct.pack(">I", len(entries)) + entries
    publish_raw_properties(channel, exchange, key, struct.pack(">H", _HEADERS) + table, body)


def publish_raw_properties(
    channel: Channel, exchange: str, key: str | bytes, properties: bytes, body: bytes
) -> None:
    """Publish a message with these properties, encoded: flags and values."""
    header = struct.pack(">HHQ", _BASIC, 0, len(body)) + properties
    inner = channel._channel
    number, largest = inner.channel_number, inner.connection.largest_body
    parts = [(frames.HEADER, header)]
    parts += [(frames.BODY, body[at : at + largest]) for at in range(0, len(body), largest)]
    content = b"".join(
        frames.FRAME.pack(kind, number, len(payload)) + payload + bytes((frames.END,))
        for kind, payload in parts
    )
    publish = frames.publish_frame(number, exchange, key, mandatory=False)  # type: ignore[arg-type]
    inner.connection.emit(publish + content, len(parts) + 1)
