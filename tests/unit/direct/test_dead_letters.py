"""What a dead letter says of itself is read whatever its publisher wrote."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.direct.dead_letters import SHOWN_BYTES, DeadLetterKind, describe, read_letters


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {"x-death": "none"},
        {"x-death": ["odd", {"time": "soon"}]},
        {"x-death": [{}]},
        {"tq-error": ""},
        {"tq-exchange": 7},
    ],
)
def test_odd_headers_are_no_reason_to_fail(headers: Any) -> None:
    letter = describe(BasicProperties(headers=headers), b"")
    assert letter.kind is DeadLetterKind.DIRECT
    assert letter.died is None


def test_the_brokers_own_time_counts_before_the_publishers() -> None:
    death = {"time": datetime(2026, 1, 2, 3, 4, 5), "reason": "delivery_limit", "queue": "w"}
    letter = describe(BasicProperties(headers={"x-death": [death]}, timestamp=5), b"")
    assert letter.died == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert letter.reason == "delivery_limit by the broker, queue w"
    assert describe(BasicProperties(timestamp=5), b"").died == 5.0


def test_only_the_beginning_of_a_payload_is_kept() -> None:
    letter = describe(BasicProperties(), b"x" * 100_000)
    assert (letter.size, len(letter.start)) == (100_000, SHOWN_BYTES)
    assert "xxx" not in repr(letter)


def test_a_token_alone_makes_it_a_tasks() -> None:
    letter = describe(BasicProperties(headers={"tq-token": "?"}), b"")
    assert (letter.kind, letter.task) == (DeadLetterKind.TASK, "/")


class FakeChannel:
    """A queue of two that others add to while it is read."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def declare_queue(self, name: str, *, passive: bool) -> int:
        return 2

    async def set_prefetch(self, count: int) -> None: ...

    async def consume(
        self, queue: str, on_delivery: Callable[[Delivery], None], on_cancel: object
    ) -> str:
        for number in range(3):
            body = str(number).encode()
            channel = cast(Channel, self)
            on_delivery(Delivery(channel, number, False, "", "", BasicProperties(), body))
        return "tag"

    async def close(self) -> None:
        self.closed.set_result((0, "closed"))


class FakeConnection:
    async def channel(self) -> FakeChannel:
        return FakeChannel()


async def test_what_comes_in_while_a_pass_goes_on_is_not_of_it() -> None:
    found = await read_letters(cast(Connection, FakeConnection()), "shop", "q")
    assert [letter.start for letter in found.letters] == [b"0", b"1"]
