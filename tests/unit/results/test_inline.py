"""Results as they are kept: what is wrapped, what is for a store, and what is refused."""

from __future__ import annotations

import pytest

from taskqueue.limits import RESULT_BYTES, STORED_RESULT_BYTES
from taskqueue.results.inline import ResultError, ResultTooLargeError, encode_result, for_store
from taskqueue.results.reference import StoredResult


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(None, None), ({"a": 1}, b'{"a":1}'), ([1], b'{"value":[1]}'), ("x", b'{"value":"x"}')],
)
def test_result_is_a_json_object_or_wrapped_in_one(value: object, encoded: bytes | None) -> None:
    assert encode_result(value) == encoded


def test_result_that_is_not_json_names_the_handler() -> None:
    with pytest.raises(
        ResultError, match="handler 'resize' returned what is not JSON: result: object"
    ) as caught:
        encode_result(object(), handler="resize")
    assert caught.value.type == "InvalidResult"


def test_result_above_the_limit_of_a_status_is_for_a_store() -> None:
    room = RESULT_BYTES - len('{"value":""}')
    assert isinstance(encode_result("x" * room), bytes)
    body = b'{"value":"%s"}' % (b"x" * (room + 1))
    assert encode_result("x" * (room + 1)) == StoredResult(body, "application/json")


def test_result_above_the_limit_of_a_store_is_too_large() -> None:
    assert for_store(bytes(STORED_RESULT_BYTES), "image/png").content_type == "image/png"
    with pytest.raises(ResultTooLargeError, match="33554433 bytes") as caught:
        for_store(bytes(STORED_RESULT_BYTES + 1), "image/png")
    assert caught.value.type == "ResultTooLarge"
