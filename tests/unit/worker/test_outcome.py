"""From what a handler returns or raises to the result of the attempt."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from taskqueue import BinaryResult, Fail, Retry, Snooze
from taskqueue.contract.outcome import EventError
from taskqueue.limits import ERROR_MESSAGE_BYTES, RESULT_BYTES
from taskqueue.results.reference import StoredResult
from taskqueue.worker.outcome import not_stored, raised, succeeded, unknown_handler


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        ({}, {}),
        ({"pages": 3}, {"pages": 3}),
        (7, {"value": 7}),
        ("text", {"value": "text"}),
        (False, {"value": False}),
        ([1, 2], {"value": [1, 2]}),
        ((1, 2), {"value": [1, 2]}),
        ({"at": datetime.date(2026, 1, 2)}, {"at": "2026-01-02"}),
    ],
)
def test_json_values_become_the_result(value: Any, result: Any) -> None:
    outcome = succeeded(value, 0.5)
    assert outcome.error is None
    assert (outcome.result, outcome.seconds) == (result, 0.5)


def test_the_result_is_a_copy() -> None:
    value = {"pages": [1]}
    outcome = succeeded(value, 0)
    value["pages"].append(2)
    assert outcome.result == {"pages": [1]}


@pytest.mark.parametrize("value", [object(), {1: 2}, {"raw": b"\x00"}, 1j, {"a": 2**70}])
def test_what_json_cannot_say_fails_for_good(value: Any) -> None:
    error = succeeded(value, 0).error
    assert error is not None
    assert (error.type, error.retryable) == ("InvalidResult", False)


def test_a_result_at_the_limit_passes_and_one_byte_more_needs_a_store() -> None:
    room = RESULT_BYTES - len('{"value":""}')
    assert succeeded("x" * room, 0).unstored is None
    larger = succeeded("x" * (room + 1), 0)
    assert (larger.error, larger.result) == (None, None)
    error = not_stored(larger, direct=False).error
    assert error is not None
    assert (error.type, error.retryable) == ("ResultTooLarge", False)
    assert "16385" in error.message
    assert "16384" in error.message


class Lying(bytes):
    def __bytes__(self) -> bytes:
        raise KeyboardInterrupt("from a handler's class")


def test_bytes_need_a_store_and_what_lies_about_being_bytes_is_a_failure() -> None:
    stored = succeeded(BinaryResult(b"1", "image/png"), 0.5).unstored
    assert stored == StoredResult(b"1", "image/png")
    error = succeeded(Lying(b"1"), 0, handler="f").error
    assert error is not None
    assert (error.type, error.retryable) == ("InvalidResult", False)


def test_an_exception_is_a_failure_that_is_tried_again() -> None:
    error = KeyError("size")
    outcome = raised(error, 1.5)
    assert outcome.error == EventError(type="KeyError", message="'size'", retryable=True)
    assert outcome.seconds == 1.5
    assert "KeyError: 'size'" in str(outcome.exception)


def test_fail_is_final_and_has_a_type_of_its_own() -> None:
    assert raised(Fail("no such customer", type="NotFound"), 0).error == EventError(
        type="NotFound", message="no such customer", retryable=False
    )


def test_retry_carries_its_wish() -> None:
    outcome = raised(Retry("rate limited", after=2.5), 0)
    assert outcome.error == EventError(type="Retry", message="rate limited", retryable=True)
    assert outcome.retry_after_seconds == 2.5


def test_a_snooze_is_no_failure() -> None:
    outcome = raised(Snooze(90), 0.5)
    assert (outcome.snooze_seconds, outcome.error, outcome.seconds) == (90, None, 0.5)


def test_even_the_end_of_the_interpreter_is_a_failed_attempt() -> None:
    assert raised(SystemExit(3), 0).error == EventError(type="SystemExit", message="3")


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "x" + "é" * 5000, "€" * 700])
def test_a_long_message_is_cut_after_a_whole_character(text: str) -> None:
    error = raised(ValueError(text), 0).error
    assert error is not None
    assert ERROR_MESSAGE_BYTES - 3 < len(error.message.encode()) <= ERROR_MESSAGE_BYTES
    assert error.message == text[: len(error.message) - 1] + "…"


def test_an_exception_whose_text_fails() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    error = raised(Broken(), 0).error
    assert error is not None
    assert error.type == "Broken"
    assert "RuntimeError" in error.message


def test_a_lone_surrogate_in_a_message_does_not_stop_the_event() -> None:
    error = raised(ValueError("bad \ud800 name"), 0).error
    assert error is not None
    error.message.encode()


@pytest.mark.parametrize("name", ["resize", None, ""])
def test_an_unknown_handler_is_retried_elsewhere_and_names_the_known_ones(
    name: str | None,
) -> None:
    error = unknown_handler(name, ["b", "a"]).error
    assert error is not None
    assert (error.type, error.retryable) == ("UnknownHandler", True)
    assert error.message.endswith("registered: a, b")


def test_whatever_fails_while_a_value_is_encoded_is_the_values_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise KeyboardInterrupt("from a property")

    monkeypatch.setattr("taskqueue.worker.outcome.encode_result", fail)
    error = succeeded({}, 0, handler="f").error
    assert error is not None
    assert (error.type, error.retryable) == ("InvalidResult", False)
    assert error.message.endswith("fails when it is encoded: KeyboardInterrupt: from a property")


async def test_a_coroutine_that_is_returned_says_what_to_write_instead() -> None:
    async def resize() -> None: ...

    error = succeeded(resize(), 0, handler="resize").error
    assert error is not None
    assert "handler 'resize' returned coroutine, which nobody awaits" in error.message
    assert "async def" in error.message


def test_a_group_of_one_counts_as_what_is_in_it() -> None:
    group = ExceptionGroup("of a task group", [Fail("no such page", type="NotFound")])
    assert raised(group, 0).error == EventError(
        type="NotFound", message="no such page", retryable=False
    )
