"""Several events in one message, each as if it came alone."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from pika.spec import BasicProperties

from taskqueue.broker.batches import BATCH_CONTENT_TYPE, batch, parts
from taskqueue.broker.channel import Channel, Delivery
from taskqueue.broker.events import CONTENT_TYPE


class FakeChannel:
    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, tag: int) -> None:
        self.acked.append(tag)


def delivery(body: bytes, content_type: str = BATCH_CONTENT_TYPE) -> tuple[FakeChannel, Delivery]:
    channel = FakeChannel()
    properties = BasicProperties(content_type=content_type, message_id="m")
    return channel, Delivery(
        cast(Channel, channel), 7, False, "taskqueue.outcomes", "shop.q.e", properties, body
    )


def test_each_event_is_a_delivery_of_its_own() -> None:
    events: list[dict[str, Any]] = [{"n": 1}, {"n": "ü"}]
    _, whole = delivery(batch([json.dumps(event).encode() for event in events]))
    found = parts(whole)
    assert [json.loads(part.body) for part in found] == events
    for part in found:
        assert part.properties.content_type == CONTENT_TYPE
        assert (part.exchange, part.routing_key) == ("taskqueue.outcomes", "shop.q.e")
        assert part.properties.message_id == "m"
    assert whole.properties.content_type == BATCH_CONTENT_TYPE


def test_the_message_is_acknowledged_with_the_last_of_them_in_any_order() -> None:
    channel, whole = delivery(batch([b"1", b"2", b"3"]))
    first, second, third = parts(whole)
    for part in (third, first, first, third):
        part.channel.ack(part.delivery_tag)
    assert channel.acked == []
    second.channel.ack(second.delivery_tag)
    second.channel.ack(second.delivery_tag)
    assert channel.acked == [7]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"[{", b"\xff"])
def test_what_is_no_list_of_events_stays_as_it_is(body: bytes) -> None:
    _, whole = delivery(body)
    assert parts(whole) == [whole]


def test_a_single_event_stays_as_it_is() -> None:
    _, whole = delivery(b"[1, 2]", CONTENT_TYPE)
    assert parts(whole) == [whole]
