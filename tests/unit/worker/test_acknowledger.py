"""Few acknowledgements for many deliveries, and never one too many."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.amqp.channel import Channel
from taskqueue.worker.acknowledger import Acknowledger
from tests.unit.worker.fakes import FakeChannel, turn


def make(count: int) -> tuple[Acknowledger, FakeChannel]:
    channel = FakeChannel()
    acknowledger = Acknowledger(
        cast(Channel, channel), asyncio.get_running_loop(), on_acknowledged=lambda: None
    )
    for tag in range(1, count + 1):
        acknowledger.received(tag)
    return acknowledger, channel


async def test_a_confirmed_prefix_is_one_acknowledgement() -> None:
    acknowledger, channel = make(4)
    for tag in (2, 1, 3):
        acknowledger.confirm(tag)
    await turn()
    assert channel.settled == [("ack", 3, True)]
    assert acknowledger.unacknowledged == 1


async def test_what_lies_beyond_a_running_one_is_acknowledged_alone() -> None:
    acknowledger, channel = make(4)
    for tag in (1, 3, 4):
        acknowledger.confirm(tag)
    await turn()
    assert channel.settled == [("ack", 1, False), ("ack", 3, False), ("ack", 4, False)]


async def test_what_cancelled_consumers_have_left_is_known() -> None:
    acknowledger, _ = make(4)
    assert acknowledger.left_over == 0
    acknowledger.on_consumers_cancelled()
    acknowledger.received(5)
    assert acknowledger.left_over == 4
    acknowledger.requeue(2)
    for tag in (1, 5):
        acknowledger.confirm(tag)
    await turn()
    assert acknowledger.left_over == 2


async def test_what_was_given_back_is_not_acknowledged_later() -> None:
    acknowledger, channel = make(3)
    acknowledger.requeue(1)
    acknowledger.reject(2)
    for tag in (1, 2, 3):
        acknowledger.confirm(tag)
    await turn()
    assert channel.settled == [("nack", 1, True), ("reject", 2, True), ("ack", 3, False)]
    assert acknowledger.unacknowledged == 0


@given(st.lists(st.lists(st.integers(1, 12), max_size=6), max_size=8))
def test_a_multiple_never_covers_what_is_not_confirmed(turns: list[list[int]]) -> None:
    async def play() -> None:
        acknowledger, channel = make(12)
        confirmed: set[int] = set()
        settled: set[int] = set()
        for batch in turns:
            for tag in batch:
                acknowledger.confirm(tag)
                confirmed.add(tag)
            acknowledger.flush()
            for _, tag, multiple in channel.settled:
                covered = set(range(1, tag + 1)) if multiple else {tag}
                assert covered <= confirmed
                settled |= covered
            assert settled == confirmed
            assert acknowledger.unacknowledged == 12 - len(confirmed)

    asyncio.run(play())
