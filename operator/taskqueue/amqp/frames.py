"""Encodes and decodes the frames of deliveries, publishes and confirms.

pika makes some twenty objects of every message. Nearly all frames of a busy connection are of these
kinds, so this module reads and writes them; pika handles every other frame. What it writes is, byte
for byte, what pika would write, and what it reads equals what pika would read, but for what
`taskqueue.amqp.field_tables` says. Errors are pika's.

One thing differs: properties that cannot be read are no error. Nobody could ever acknowledge such a
message, and the broker would deliver it again to each new connection. It arrives with empty
properties and a *problem*, which says what is wrong with it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pika import data as pika_data
from pika import exceptions
from pika.spec import FRAME_MAX_SIZE, BasicProperties

from taskqueue.amqp.field_tables import read_short_string, read_table
from taskqueue.limits import SHORT_STRING_BYTES

METHOD, HEADER, BODY = 1, 2, 3
#: Before a frame's payload; one byte follows the payload, `END`.
FRAME = struct.Struct(">BHI")
END = 0xCE
#: Of a frame's payload, in bytes: pika agrees to no larger frames.
LARGEST_PAYLOAD = FRAME_MAX_SIZE - FRAME.size - 1

#: The first bytes of a method's payload: class and method.
DELIVER = b"\x00\x3c\x00\x3c"
ACK = b"\x00\x3c\x00\x50"
NACK = b"\x00\x3c\x00\x78"

_PUBLISH = b"\x00\x3c\x00\x28\x00\x00"
_BASIC = 60
_TAG = struct.Struct(">QB")
_LONG = struct.Struct(">Q")
_CONTENT = struct.Struct(">HHQH")
_ACK_FRAME = struct.Struct(">BHI4sQBB")
_HEAD_FRAME = struct.Struct(">BHIHHQH")

#: Flags of properties, in the order of what follows them.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4
_APP_ID = 1 << 3
#: Of AMQP 0-9; what nobody sets is not written.
_CLUSTER_ID = 1 << 2
#: What AMQP 0-9-1 has no properties for. pika would read as many flags as there are.
_UNKNOWN = 1 << 1 | 1


class Deliver(NamedTuple):
    """The fields of a Basic.Deliver, which precedes a delivered message, and its problem."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    problem: str = ""


def read_deliver(data: bytes, at: int) -> Deliver:
    """Read the payload of a Basic.Deliver that begins at ``at``."""
    consumer_tag, at = read_short_string(data, at + 4)
    delivery_tag, redelivered = _TAG.unpack_from(data, at)
    is_again = redelivered & 1 == 1
    begin = at + 9
    try:
        exchange, at = read_short_string(data, begin)
        key, _ = read_short_string(data, at)
    except UnicodeDecodeError:
        exchange, at = _read_any_string(data, begin)
        key, _ = _read_any_string(data, at)
        problem = "its exchange or routing key is not UTF-8"
        return Deliver(consumer_tag, delivery_tag, is_again, exchange, key, problem)
    return Deliver(consumer_tag, delivery_tag, is_again, exchange, key)


def read_confirm(data: bytes, at: int) -> tuple[int, bool]:
    """Read the tag of a Basic.Ack or Basic.Nack, and whether it is ``multiple``."""
    tag, bits = _TAG.unpack_from(data, at + 4)
    return tag, bits & 1 == 1


def read_header(data: bytes, at: int, end: int) -> tuple[int, BasicProperties, str]:
    """Read the payload of a content header.

    Returns:
        The length of the body, the properties, and why they cannot be read: "" if they can.
    """
    _, _, length, flags = _CONTENT.unpack_from(data, at)
    try:
        if flags & _UNKNOWN:
            raise ValueError(f"nobody knows the properties of flags {flags:#06x}")
        properties, read_to = _read_properties(data, at + 14, flags)
        if read_to != end:
            raise ValueError(f"they end {read_to - end:+} bytes from the end of their frame")
    except Exception as error:  # a date that does not exist, a value cut off, anything
        return length, BasicProperties(), f"its properties cannot be read: {error!r}"
    return length, properties, ""


def _read_properties(data: bytes, at: int, flags: int) -> tuple[BasicProperties, int]:
    properties = BasicProperties()
    if flags & _CONTENT_TYPE:
        properties.content_type, at = read_short_string(data, at)
    if flags & _CONTENT_ENCODING:
        properties.content_encoding, at = read_short_string(data, at)
    if flags & _HEADERS:
        properties.headers, at = read_table(data, at)
    if flags & _DELIVERY_MODE:
        properties.delivery_mode = data[at]
        at += 1
    if flags & _PRIORITY:
        properties.priority = data[at]
        at += 1
    if flags & _CORRELATION_ID:
        properties.correlation_id, at = read_short_string(data, at)
    if flags & _REPLY_TO:
        properties.reply_to, at = read_short_string(data, at)
    if flags & _EXPIRATION:
        properties.expiration, at = read_short_string(data, at)
    if flags & _MESSAGE_ID:
        properties.message_id, at = read_short_string(data, at)
    if flags & _TIMESTAMP:
        (properties.timestamp,) = _LONG.unpack_from(data, at)
        at += 8
    if flags & _TYPE:
        properties.type, at = read_short_string(data, at)
    if flags & _USER_ID:
        properties.user_id, at = read_short_string(data, at)
    if flags & _APP_ID:
        properties.app_id, at = read_short_string(data, at)
    if flags & _CLUSTER_ID:
        properties.cluster_id, at = read_short_string(data, at)
    return properties, at


def ack_frame(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return a Basic.Ack."""
    return _ACK_FRAME.pack(METHOD, channel, 13, ACK, tag, multiple, END)


def publish_frame(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    """Return a Basic.Publish; the same for every message that goes there.

    Raises:
        pika.exceptions.ShortStringTooLong: the exchange or the key.
    """
    payload = _PUBLISH + _string(exchange) + _string(key) + (b"\x01" if mandatory else b"\x00")
    return FRAME.pack(METHOD, channel, len(payload)) + payload + b"\xce"


def content_frames(channel: int, properties: BasicProperties, body: bytes) -> bytes:
    """Return the header of a message, and its body where there is one, in one frame.

    Raises:
        pika.exceptions.AMQPError, AssertionError, TypeError, struct.error: a property cannot be
            encoded.
    """
    pieces = [b""]
    flags = 0
    if properties.content_type is not None:
        flags |= _CONTENT_TYPE
        pieces.append(_string(properties.content_type))
    if properties.content_encoding is not None:
        flags |= _CONTENT_ENCODING
        pieces.append(_string(properties.content_encoding))
    if properties.headers is not None:
        flags |= _HEADERS
        pika_data.encode_table(pieces, properties.headers)
    if properties.delivery_mode is not None:
        flags |= _DELIVERY_MODE
        pieces.append(struct.pack("B", properties.delivery_mode))
    if properties.priority is not None:
        flags |= _PRIORITY
        pieces.append(struct.pack("B", properties.priority))
    if properties.correlation_id is not None:
        flags |= _CORRELATION_ID
        pieces.append(_string(properties.correlation_id))
    if properties.reply_to is not None:
        flags |= _REPLY_TO
        pieces.append(_string(properties.reply_to))
    if properties.expiration is not None:
        flags |= _EXPIRATION
        pieces.append(_string(properties.expiration))
    if properties.message_id is not None:
        flags |= _MESSAGE_ID
        pieces.append(_string(properties.message_id))
    if properties.timestamp is not None:
        flags |= _TIMESTAMP
        pieces.append(_LONG.pack(properties.timestamp))
    if properties.type is not None:
        flags |= _TYPE
        pieces.append(_string(properties.type))
    if properties.user_id is not None:
        flags |= _USER_ID
        pieces.append(_string(properties.user_id))
    if properties.app_id is not None:
        flags |= _APP_ID
        pieces.append(_string(properties.app_id))
    size = sum(map(len, pieces)) + 14
    pieces[0] = _HEAD_FRAME.pack(HEADER, channel, size, _BASIC, 0, len(body), flags)
    if body:
        pieces += (b"\xce", FRAME.pack(BODY, channel, len(body)), body)
    pieces.append(b"\xce")
    return b"".join(pieces)


def _read_any_string(data: bytes, at: int) -> tuple[str, int]:
    """Read a short string for people; not longer than it was, so that it can be written again."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode(errors="replace").replace("\ufffd", "?"), end


def _string(text: str) -> bytes:
    """Return a short string."""
    encoded = text if isinstance(text, bytes) else text.encode()
    if len(encoded) > SHORT_STRING_BYTES:
        raise exceptions.ShortStringTooLong(encoded)
    return bytes((len(encoded),)) + encoded
