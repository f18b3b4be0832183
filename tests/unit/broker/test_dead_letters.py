"""What a dead letter says of itself is read whatever its publisher wrote."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pika.spec import BasicProperties

from taskqueue.broker.dead_letters import SHOWN_BYTES, Kind, describe


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
    assert letter.kind is Kind.DIRECT
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
    assert (letter.kind, letter.task) == (Kind.TASK, "/")
