"""Results as they are kept: what is wrapped, and what is refused."""

import pytest

from taskqueue.limits import RESULT_BYTES
from taskqueue.results.inline import ResultError, ResultTooLargeError, encode_result


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


def test_result_above_the_limit_is_too_large() -> None:
    room = RESULT_BYTES - len('{"value":""}')
    assert encode_result("x" * room) is not None
    with pytest.raises(ResultTooLargeError) as caught:
        encode_result("x" * (room + 1))
    assert caught.value.type == "ResultTooLarge"
