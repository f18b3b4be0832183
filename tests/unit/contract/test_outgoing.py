"""Copies of messages: whatever headers a message had, its copy can be published."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties

from taskqueue.amqp import frames
from taskqueue.contract.names import CUT_HEADER, DIRECT_EXCHANGE, ERROR_HEADER
from taskqueue.contract.outgoing import OutgoingMessage, dead_letter
from taskqueue.limits import HEADERS_BYTES

#: What RabbitMQ and pika agree on by default.
FRAME_BYTES = 131_072 - 8

VALUES = st.recursive(
    st.one_of(
        st.text(max_size=20),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.decimals(),
        st.booleans(),
        st.none(),
        st.binary(max_size=20),
        st.datetimes(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def copy_of(headers: dict[str, Any], reason: str = "why") -> OutgoingMessage:
    properties = BasicProperties(type="resize", headers=headers)
    return dead_letter(
        properties,
        b"body",
        exchange=DIRECT_EXCHANGE,
        namespace="shop",
        queue="q",
        reason=reason,
    )


def frame_bytes(message: OutgoingMessage) -> int:
    """Return the size of the message's header frame; raises if it cannot be encoded."""
    return len(frames.content_frames(1, message.properties(), b""))


@given(headers=st.dictionaries(st.text(max_size=60), VALUES, max_size=5), reason=st.text())
def test_a_copy_can_be_published_whatever_its_headers(headers: dict[str, Any], reason: str) -> None:
    message = copy_of(headers, reason)
    assert frame_bytes(message) < FRAME_BYTES
    assert message.headers is not None
    assert ERROR_HEADER in message.headers


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [datetime(1, 1, 1, tzinfo=UTC), Decimal("1e400"), Decimal("nan"), 2**64, deep(5000), object()],
)
def test_a_header_that_cannot_be_encoded_is_cut_and_named(value: object) -> None:
    headers = copy_of({"bad": value, "good": 1, "x-death": []}).headers or {}
    if "bad" in headers:  # in a form that can be published
        assert headers["bad"] is None
    else:
        assert headers[CUT_HEADER] == "bad"
    assert headers["good"] == 1
    assert "x-death" not in headers
    frame_bytes(copy_of({"bad": value}))


def test_the_largest_headers_are_cut_until_the_others_fit_a_frame() -> None:
    headers = {f"h{number}": "x" * 1000 * number for number in range(1, 17)}
    copied = copy_of(headers).headers or {}
    assert copied[CUT_HEADER] == "h16, h15, h14"
    assert sum(len(str(value)) for value in copied.values()) <= HEADERS_BYTES
    assert frame_bytes(copy_of({"one": "x" * 130_900})) < FRAME_BYTES
