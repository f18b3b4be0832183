"""Dead letters are described whatever their publisher wrote."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery, QueueCounts
from taskqueue.amqp.connection import Connection
from taskqueue.direct.dead_letters import DeadLetterKind, describe, read_dead_letters


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
def test_describe_accepts_malformed_headers(headers: Any) -> None:
    message = describe(BasicProperties(headers=headers), b"")
    assert message.kind is DeadLetterKind.DIRECT
    assert message.died is None


def test_the_brokers_time_of_death_precedes_the_publishers_timestamp() -> None:
    death = {"time": datetime(2026, 1, 2, 3, 4, 5), "reason": "delivery_limit", "queue": "w"}
    message = describe(BasicProperties(headers={"x-death": [death]}, timestamp=5), b"")
    assert message.died == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert message.reason == "delivery_limit by the broker, queue w"
    assert describe(BasicProperties(timestamp=5), b"").died == 5.0


def test_only_the_start_of_a_body_is_kept() -> None:
    message = describe(BasicProperties(), b"x" * 100_000, body_bytes=20)
    assert (message.size, message.body_start) == (100_000, b"x" * 20)
    assert "xxx" not in repr(message)


def test_a_message_with_a_token_is_of_a_task() -> None:
    message = describe(BasicProperties(headers={"tq-token": "?"}), b"")
    assert (message.kind, message.task) == (DeadLetterKind.TASK, "/")


class FakeChannel:
    """A queue of two that others add to while it is read."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def count_queue(self, name: str) -> QueueCounts:
        return QueueCounts(2, 0)

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


async def test_a_pass_ignores_messages_that_come_while_it_runs() -> None:
    page = await read_dead_letters(cast(Connection, FakeConnection()), "shop", "q", body_bytes=1)
    assert [message.body_start for message in page.messages] == [b"0", b"1"]
