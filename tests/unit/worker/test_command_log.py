"""The commands a worker has seen, by token."""

from __future__ import annotations

from taskqueue.model.command import CommandKind
from taskqueue.worker.command_log import AGE_SECONDS, CommandLog


def test_a_command_is_known_by_its_token() -> None:
    book = CommandLog()
    book.add("a", CommandKind.CANCEL, 0.0)
    book.add("b", CommandKind.RELEASE, 0.0)
    assert (book.get("a"), book.get("b")) == (CommandKind.CANCEL, CommandKind.RELEASE)
    assert book.get("c") is None


def test_the_last_command_of_a_token_counts() -> None:
    book = CommandLog()
    book.add("a", CommandKind.RELEASE, 0.0)
    book.add("a", CommandKind.CANCEL, 1.0)
    assert book.get("a") is CommandKind.CANCEL
    assert len(book) == 1


def test_the_oldest_are_dropped_beyond_the_number() -> None:
    book = CommandLog(tokens=2)
    for number, token in enumerate("abac"):
        book.add(token, CommandKind.CANCEL, float(number))
    assert [token for token in "abc" if book.get(token)] == ["a", "c"]


def test_a_command_is_dropped_after_a_day() -> None:
    book = CommandLog()
    book.add("a", CommandKind.CANCEL, 0.0)
    book.add("b", CommandKind.CANCEL, AGE_SECONDS - 1)
    assert book.get("a") is not None
    book.add("c", CommandKind.CANCEL, AGE_SECONDS)
    assert book.get("a") is None
    assert len(book) == 2


def test_a_great_many_do_not_pile_up() -> None:
    book = CommandLog(tokens=1000)
    for number in range(10_000):
        book.add(f"k.{number}", CommandKind.CANCEL, number / 1000)
    assert len(book) == 1000
    assert book.get("k.9999") is not None
