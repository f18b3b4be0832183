"""Whatever properties, keys and bodies the broker passes on: each message arrives, once, whole.

And whatever bytes arrive instead of frames: the connection ends with a reason, or goes on.
"""

from __future__ import annotations

import struct
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame
from pika import spec as amqp
from pika.spec import Basic

from taskqueue.amqp import frames
from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.outgoing import dead_letter
from tests.fuzz import field_tables as tables
from tests.fuzz.cases import CUTS, FEW, MANY, PARAMETERS, fewer
from tests.fuzz.wire_broker import FRAME_MAX, Cut, RawMessage, WireBroker, encoded_delivery
from tests.unit.controller.virtual_time import VirtualLoop

_BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * FRAME_MAX]).map(
        lambda size: b"b" * size
    ),
)
_KEYS = st.binary(max_size=255) | st.just(b"shop.q")


@st.composite
def messages(draw: st.DrawFn) -> RawMessage:
    """Return a message that is wrong in any way in which the broker passes it on."""
    properties = draw(tables.GOOD_PROPERTIES | tables.BAD_PROPERTIES)
    room = FRAME_MAX - 8 - 12
    return RawMessage(b"taskqueue.work", draw(_KEYS), properties[:room], draw(_BODIES))


class Reader:
    """A consumer on a connection of its own, and what it was given."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.broker = WireBroker()
        self.given: list[Delivery] = []
        self.connection, self.channel = self.loop.run_until_complete(self._open())

    async def _open(self) -> tuple[Connection, Channel]:
        connection = await self.broker.connect(PARAMETERS, name="fuzz")
        channel = await connection.channel()
        await channel.consume("q", self.given.append, lambda reason: None)
        return connection, channel

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.die()


GOOD = RawMessage(b"taskqueue.work", b"shop.q", tables.encoded_properties({}), b"good")


def every_message_arrives(sent: list[RawMessage], cut: Cut) -> None:
    with Reader() as reader:
        reader.broker.cut = cut
        for message in [*sent, GOOD]:
            reader.loop.do(partial(reader.broker.deliver, "q", message))
        assert [each.body for each in reader.given] == [each.body for each in [*sent, GOOD]]
        assert reader.given[-1].problem == ""
        assert not reader.loop.problems
        for delivery in reader.given:
            _can_be_parked(delivery)
            reader.loop.do(partial(reader.channel.ack, delivery.delivery_tag))
        assert not reader.broker.unacknowledged
        assert not reader.connection.closed.done()


def _can_be_parked(delivery: Delivery) -> None:
    copy = dead_letter(
        delivery.properties,
        delivery.body,
        exchange=delivery.exchange,
        namespace="shop",
        queue="q",
        reason="it is bad",
    )
    written = frames.content_frames(1, copy.properties(), b"")
    assert len(written) < FRAME_MAX


SENT = st.lists(messages(), min_size=1, max_size=4)
#: Each message and each frame is a case, and two or three come at a time.
SEVERAL = fewer(FEW, 2)


@SEVERAL
@given(sent=SENT, cut=CUTS)
def test_every_message_arrives(sent: list[RawMessage], cut: Cut) -> None:
    every_message_arrives(sent, cut)


@pytest.mark.long
@pytest.mark.timeout(1800)
@MANY
@given(sent=SENT, cut=CUTS)
def test_every_message_arrives_of_many_new_ones(sent: list[RawMessage], cut: Cut) -> None:
    every_message_arrives(sent, cut)


@FEW
@given(properties=tables.GOOD_PROPERTIES)
def test_properties_as_they_should_be_are_no_problem(properties: bytes) -> None:
    message = RawMessage(b"taskqueue.work", b"shop.q", properties, b"body")
    with Reader() as reader:
        reader.loop.do(partial(reader.broker.deliver, "q", message))
        assert [each.problem for each in reader.given] == [""]


#: Frames that follow a handshake: deliveries, confirms, a return, a heartbeat, a cancel.
_METHODS = [
    frame.Method(1, Basic.Ack(1, True)).marshal(),
    frame.Method(1, Basic.Nack(0, True)).marshal(),
    frame.Method(1, Basic.Cancel("nobody", True)).marshal(),
    frame.Method(1, Basic.Return(312, "NO_ROUTE", "e", "k")).marshal(),
    frame.Method(1, Basic.GetEmpty()).marshal(),
    frame.Method(0, amqp.Connection.Blocked("memory")).marshal(),
    frame.Method(0, amqp.Connection.Unblocked()).marshal(),
    frame.Heartbeat().marshal(),
]
_STREAMS = st.lists(
    st.builds(partial(encoded_delivery, 1, "ctag"), st.integers(0, 2**64 - 1), messages())
    | st.sampled_from(_METHODS),
    min_size=1,
    max_size=4,
).map(b"".join)


def any_bytes_end_the_connection_or_do_not(data: bytes, cut: Cut) -> None:
    with Reader() as reader:
        for piece in cut(data):
            reader.loop.do(partial(reader.broker.connections[0].receive, piece))
        stream = reader.connection._stream
        assert len(stream._partial_frame) <= FRAME_MAX
        assert not reader.loop.problems
        if reader.connection.closed.done():
            assert reader.connection.closed.result().startswith("the ")


@FEW
@given(data=tables.broken(_STREAMS), cut=CUTS)
def test_bytes_that_are_no_frames_end_the_connection_with_a_reason(data: bytes, cut: Cut) -> None:
    any_bytes_end_the_connection_or_do_not(data, cut)


@pytest.mark.long
@pytest.mark.timeout(1800)
@MANY
@given(data=tables.broken(_STREAMS), cut=CUTS)
def test_many_new_bytes_end_the_connection_with_a_reason(data: bytes, cut: Cut) -> None:
    any_bytes_end_the_connection_or_do_not(data, cut)


def test_a_frame_larger_than_was_agreed_is_not_waited_for() -> None:
    with Reader() as reader:
        start = struct.pack(">BHI", 3, 1, 2**32 - 1) + b"x"
        reader.loop.do(partial(reader.broker.connections[0].receive, start))
        reason = reader.connection.closed.result()
    assert "what the broker sent cannot be read" in reason
