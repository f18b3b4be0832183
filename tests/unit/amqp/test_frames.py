"""What is read and written without pika is what pika would read and write."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import exceptions, frame
from pika.compat import long
from pika.spec import Basic, BasicProperties, Channel, Confirm, Connection

from taskqueue.amqp import frames
from taskqueue.amqp.adapter import StreamConnection
from taskqueue.amqp.channel import Channel as OurChannel
from taskqueue.amqp.connection import Connection as OurConnection
from taskqueue.amqp.parameters import BrokerParameters

WORDS = st.text(max_size=60)
VALUES = st.recursive(
    st.one_of(
        WORDS,
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        st.none(),
        st.binary(max_size=20),
        st.just(datetime(2026, 1, 2, tzinfo=UTC)),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
PROPERTIES = st.builds(
    BasicProperties,
    headers=st.none() | st.dictionaries(WORDS, VALUES, max_size=4),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.integers(0, 2**64 - 1),
    **{
        name: st.none() | WORDS
        for name in (
            "content_type",
            "content_encoding",
            "correlation_id",
            "reply_to",
            "expiration",
            "message_id",
            "type",
            "user_id",
            "app_id",
        )
    },
)


def pikas(channel: int, properties: BasicProperties, body: bytes) -> bytes:
    written: bytes = frame.Header(channel, len(body), properties).marshal()
    return written + (frame.Body(channel, body).marshal() if body else b"")


@given(properties=PROPERTIES, body=st.binary(max_size=100), channel=st.integers(1, 2047))
def test_a_message_is_written_as_pika_writes_it(
    properties: BasicProperties, body: bytes, channel: int
) -> None:
    ours = frames.content_frames(channel, properties, body)
    assert ours == pikas(channel, properties, body)


@given(properties=PROPERTIES, length=st.integers(0, 2**40))
def test_properties_are_read_as_pika_reads_them(properties: BasicProperties, length: int) -> None:
    header = frame.Header(1, length, properties).marshal()
    theirs = frame.decode_frame(header)[1]
    assert isinstance(theirs, frame.Header)
    found = frames.read_header(header, 7, len(header) - 1)
    assert found == (length, theirs.properties, "")


def header_frame(flags: int, rest: bytes, length: int = 5) -> bytes:
    payload = struct.pack(">HHQH", 60, 0, length, flags) + rest
    return frames.FRAME.pack(2, 1, len(payload)) + payload + b"\xce"


def table(*entries: bytes) -> bytes:
    """Return a header frame whose headers are these entries: name and value."""
    inner = b"".join(entries)
    return header_frame(1 << 13, struct.pack(">I", len(inner)) + inner)


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"\x01aF" + struct.pack(">I", len(inner)) + inner
    return inner


UNREADABLE = {
    "a date in milliseconds": table(b"\x01aT" + struct.pack(">Q", 1_764_000_000_000)),
    "the last date of 64 bits": table(b"\x01aT" + b"\xff" * 8),
    "a date inside an array": table(b"\x01aA\x00\x00\x00\x09T" + b"\xff" * 8),
    "tables 500 deep": table(nested(500)),
    "a type nobody knows": table(b"\x01a?"),
    "a value that is missing": table(b"\x01a"),
    "a name longer than the table": table(b"\xffa"),
    "a text longer than the frame": table(b"\x01aS\xff\xff\xff\xff")[:-1],
    "a header name that is not UTF-8": table(b"\x01\xe9I\x00\x00\x00\x01"),
    "the same beside what pika reads": table(b"\x01\xe9V", b"\x01bV"),
    "the same inside a table": table(b"\x01aF\x00\x00\x00\x03\x01\xe9V"),
    "a type that is not UTF-8": header_frame(1 << 5, b"\x04caf\xe9"),
    "a message id that is not UTF-8": header_frame(1 << 7, b"\x01\xff"),
    "the same with a property that pika reads": header_frame(1 << 5 | 1 << 2, b"\x01\xe9\x01c"),
    "a property that is missing": header_frame(1 << 15, b""),
    "flags without end": header_frame(1, b"\x00\x01" * 50_000),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_properties_that_cannot_be_read_are_a_problem_not_an_error(name: str) -> None:
    header = UNREADABLE[name]
    length, properties, problem = frames.read_header(header, 7, len(header) - 1)
    assert (length, properties) == (5, BasicProperties())
    assert problem.startswith("its properties cannot be read: ")


def test_a_date_in_milliseconds_is_an_exception_of_pikas_decoder() -> None:
    """Why this decoder exists beside pika's: docs/decisions, own AMQP transport."""
    header = UNREADABLE["a date in milliseconds"]
    whole = header[:3] + struct.pack(">I", len(header) - 8) + header[7:]
    with pytest.raises(ValueError, match="year 57868 is out of range"):
        frame.decode_frame(whole)


@given(header=st.builds(header_frame, st.integers(0, 2**16 - 1), st.binary(max_size=200)))
@settings(max_examples=1000)
def test_no_content_header_raises(header: bytes) -> None:
    length, properties, problem = frames.read_header(header, 7, len(header) - 1)
    assert length == 5
    assert not problem or properties == BasicProperties()


@given(properties=PROPERTIES, data=st.data())
@settings(max_examples=1000)
def test_no_content_header_with_a_few_wrong_bytes_raises(
    properties: BasicProperties, data: st.DataObject
) -> None:
    header = bytearray(frame.Header(1, 5, properties).marshal())
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(19, len(header) - 1))] = data.draw(st.integers(0, 255))
    length, _, _ = frames.read_header(bytes(header), 7, len(header) - 1)
    assert length == 5


@pytest.mark.parametrize("number", [0.5, -1e300, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kind", ["f", "d"])
def test_a_floating_point_number_stays_one(kind: str, number: float) -> None:
    number = number if kind == "d" or abs(number) < 1e30 or number != number else 0.25
    value = kind.encode() + struct.pack(f">{kind}", number)
    array = b"\x01bA" + struct.pack(">I", len(value)) + value
    header = table(b"\x01a" + value, array)
    _, properties, problem = frames.read_header(header, 7, len(header) - 1)
    assert problem == ""
    assert repr(properties.headers) == repr({"a": number, "b": [number]})


def array_of(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"A" + struct.pack(">I", len(inner)) + inner
    return b"\x01a" + inner


@pytest.mark.parametrize("nest", [nested, array_of])
@pytest.mark.parametrize("depth", [1, 99, 100, 101, 400, 450, 480, 500, 5000])
def test_what_is_nested_too_deep_is_a_problem_wherever_it_is_read(
    nest: Callable[[int], bytes], depth: int
) -> None:
    header = table(nest(depth))
    _, properties, problem = frames.read_header(header, 7, len(header) - 1)
    assert (problem == "") == (depth < 100)
    if not problem:
        frames.content_frames(1, properties, b"")
    else:
        assert "deeper than 100 levels" in problem


def test_a_routing_key_that_is_not_utf8_is_a_problem() -> None:
    written = frame.Method(3, Basic.Deliver("c", 1, False, "e", b"caf\xe9")).marshal()
    deliver = frames.read_deliver(written, 7)
    assert deliver[:5] == ("c", 1, False, "e", "caf?")
    assert deliver.problem == "its exchange or routing key is not UTF-8"


def test_a_number_of_64_bits_is_written_as_one_again() -> None:
    headers = {"x-delivery-count": long(3), "n": 2**40}
    header = frame.Header(1, 0, BasicProperties(headers=headers)).marshal()
    read = frames.read_header(header, 7, len(header) - 1)[1]
    assert frames.content_frames(1, read, b"") == header


def test_a_property_nobody_uses_is_read_too() -> None:
    header = frame.Header(1, 5, BasicProperties(type="t", cluster_id="c")).marshal()
    length, properties, _ = frames.read_header(header, 7, len(header) - 1)
    assert (length, properties.type, properties.cluster_id) == (5, "t", "c")


@given(tag=st.integers(0, 2**64 - 1), redelivered=st.booleans(), words=st.tuples(*[WORDS] * 3))
def test_a_deliver_is_read_as_pika_reads_it(
    tag: int, redelivered: bool, words: tuple[str, str, str]
) -> None:
    consumer, exchange, key = words
    written = frame.Method(3, Basic.Deliver(consumer, tag, redelivered, exchange, key)).marshal()
    assert frames.read_deliver(written, 7) == (consumer, tag, redelivered, exchange, key, "")


@pytest.mark.parametrize("multiple", [False, True])
def test_acknowledgements_are_read_and_written_as_by_pika(multiple: bool) -> None:
    written = frame.Method(3, Basic.Ack(2**40, multiple)).marshal()
    assert frames.ack_frame(3, 2**40, multiple=multiple) == written
    assert frames.read_confirm(written, 7) == (2**40, multiple)


@pytest.mark.parametrize("mandatory", [False, True])
def test_a_publish_is_written_as_pika_writes_it(mandatory: bool) -> None:
    method = Basic.Publish(exchange="e", routing_key="schlüssel", mandatory=mandatory)
    written = frame.Method(3, method).marshal()
    assert frames.publish_frame(3, "e", "schlüssel", mandatory=mandatory) == written


def test_what_is_too_long_is_pikas_error() -> None:
    with pytest.raises(exceptions.ShortStringTooLong):
        frames.publish_frame(1, "e", "k" * 256, mandatory=True)
    with pytest.raises(exceptions.ShortStringTooLong):
        frames.content_frames(1, BasicProperties(type="é" * 128), b"")


class Broker(asyncio.Transport):
    """The other end of a connection: answers the handshake, and says what a test has it say."""

    ANSWERS: ClassVar[dict[tuple[int, int], tuple[int, Any]]] = {
        (10, 11): (0, Connection.Tune(100, 4096, 10)),
        (10, 40): (0, Connection.OpenOk()),
        (20, 10): (1, Channel.OpenOk()),
        (85, 10): (1, Confirm.SelectOk()),
    }

    def __init__(self, connection: StreamConnection) -> None:
        super().__init__()
        self.connection = connection
        self.heard = b""
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def write(self, data: Any) -> None:
        self.heard += data
        if data.startswith(b"AMQP"):
            self.answer(0, Connection.Start(0, 9, {}, "PLAIN", "en_US"))
            return
        at = 0
        while at < len(data):
            kind, _, size = struct.unpack_from(">BHI", data, at)
            method = struct.unpack_from(">HH", data, at + 7)
            if kind == 1 and method in self.ANSWERS:
                self.answer(*self.ANSWERS[method])
            if kind == 1 and method == (60, 20):
                begin = at + 14 + data[at + 13]
                tag = data[begin + 1 : begin + 1 + data[begin]].decode()
                self.answer(1, Basic.ConsumeOk(tag))
            at += 8 + size

    def answer(self, channel: int, method: Any) -> None:
        said = frame.Method(channel, method).marshal()
        asyncio.get_running_loop().call_soon(self.connection.on_data, said)


async def opened() -> tuple[Broker, OurChannel]:
    loop = asyncio.get_running_loop()
    parameters = BrokerParameters(host="h", port=1, username="u", password="p")
    connection = OurConnection(parameters, "test", 10, loop)
    broker = Broker(connection._stream)
    connection._stream.on_connected(broker)
    await connection._opened
    return broker, await connection.channel()


@pytest.mark.parametrize("piece", [1, 2, 7, 8, 9, 100, 10_000])
async def test_messages_come_in_whatever_pieces_they_come(piece: int) -> None:
    broker, channel = await opened()
    seen: list[tuple[int, str | None, bytes]] = []
    tag = await channel.consume(
        "q",
        lambda delivery: seen.append(
            (delivery.delivery_tag, delivery.properties.type, delivery.body)
        ),
        lambda reason: None,
    )
    said = b""
    bodies = [b"", b"{}", b"x" * 9000, b"y"]
    for number, body in enumerate(bodies, 1):
        said += frame.Method(1, Basic.Deliver(tag, number, False, "e", "k")).marshal()
        said += frame.Header(1, len(body), BasicProperties(type=f"t{number}")).marshal()
        for begin in range(0, len(body), 4088):
            said += frame.Body(1, body[begin : begin + 4088]).marshal()
        said += frame.Heartbeat().marshal()
    for begin in range(0, len(said), piece):
        broker.connection.on_data(said[begin : begin + piece])
    assert seen == [(number, f"t{number}", body) for number, body in enumerate(bodies, 1)]


async def test_a_returned_message_and_its_confirm_come_in_their_order() -> None:
    broker, channel = await opened()
    seen: list[tuple[Any, ...]] = []
    await channel.select_confirms(
        lambda tag, multiple, acked: seen.append((tag, multiple, acked)),
        lambda message_id, reason: seen.append((message_id, reason)),
    )
    back = frame.Method(1, Basic.Return(312, "NO_ROUTE", "e", "k")).marshal()
    back += pikas(1, BasicProperties(message_id="m"), b"body")
    back += frame.Method(1, Basic.Ack(1, True)).marshal()
    back += frame.Method(1, Basic.Nack(2, False)).marshal()
    broker.connection.on_data(back)
    assert seen == [("m", "312 NO_ROUTE: exchange e, key k"), (1, True, True), (2, False, False)]


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 10_000])
async def test_a_body_is_cut_into_frames_the_broker_takes(size: int) -> None:
    broker, channel = await opened()
    broker.heard = b""
    properties = BasicProperties(type="t")
    channel.publish("e", "k", b"z" * size, properties, mandatory=True)
    await asyncio.sleep(0)
    expected = frame.Method(1, Basic.Publish(0, "e", "k", True)).marshal()
    expected += frame.Header(1, size, properties).marshal()
    for begin in range(0, size, 4088):
        expected += frame.Body(1, b"z" * min(4088, size - begin)).marshal()
    assert broker.heard == expected


@pytest.mark.parametrize(
    "properties",
    [
        BasicProperties(type="t" * 256),
        BasicProperties(type=5),
        BasicProperties(timestamp=-1),
        BasicProperties(headers={"h": 0.5}),
        BasicProperties(type="\ud800"),
        BasicProperties(headers={"h": "x" * 5000}),
    ],
)
async def test_what_cannot_be_encoded_is_told_and_leaves_nothing(
    properties: BasicProperties,
) -> None:
    broker, channel = await opened()
    broker.heard = b""
    with pytest.raises(ValueError, match="exchange e, key k"):
        channel.publish("e", "k", b"", properties)
    await asyncio.sleep(0)
    assert broker.heard == b""


async def test_headers_that_do_not_fit_a_frame_are_refused_with_a_large_body_too() -> None:
    broker, channel = await opened()
    broker.heard = b""
    with pytest.raises(ValueError, match=r"have 5\d\d\d bytes, a frame takes 4088"):
        channel.publish("e", "k", b"x" * 9000, BasicProperties(headers={"h": "x" * 5000}))
    await asyncio.sleep(0)
    assert broker.heard == b""


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_message_that_cannot_be_read_arrives_with_its_problem_and_others_follow(
    name: str,
) -> None:
    broker, channel = await opened()
    seen: list[tuple[str, bytes]] = []
    tag = await channel.consume(
        "q", lambda delivery: seen.append((delivery.problem[:14], delivery.body)), lambda _: None
    )
    header = UNREADABLE[name]
    size = struct.pack(">I", len(header) - 8)
    said = frame.Method(1, Basic.Deliver(tag, 1, False, "e", "k")).marshal()
    said += header[:3] + size + header[7:-1] + b"\xce" + frame.Body(1, b"wrong").marshal()
    said += frame.Method(1, Basic.Deliver(tag, 2, False, "e", "k")).marshal()
    said += pikas(1, BasicProperties(type="t"), b"right")
    broker.connection.on_data(said)
    assert seen == [("its properties", b"wrong"), ("", b"right")]


async def test_a_body_longer_than_announced_ends_the_connection() -> None:
    broker, channel = await opened()
    tag = await channel.consume("q", lambda delivery: None, lambda reason: None)
    assert not broker.closing
    said = frame.Method(1, Basic.Deliver(tag, 1, False, "e", "k")).marshal()
    said += frame.Header(1, 2, BasicProperties()).marshal() + frame.Body(1, b"abc").marshal()
    broker.connection.on_data(said)
    assert broker.closing
