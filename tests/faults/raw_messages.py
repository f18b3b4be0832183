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
    header = struct.pack(">HHQH", _BASIC, 0, len(body), _HEADERS) + table
    inner = channel._channel
    number = inner.channel_number
    content = b"".join(
        frames.FRAME.pack(kind, number, len(payload)) + payload + bytes((frames.END,))
        for kind, payload in ((frames.HEADER, header), (frames.BODY, body))
    )
    inner.connection.emit(frames.publish_frame(number, exchange, key, mandatory=False) + content, 3)
