"""What a handler returned, as it is kept: JSON, inline in a status or as the body in a store.

Which Python values are JSON is decided in `taskqueue.jsonable`. A result above the limit of a
status is for a store.
"""

from __future__ import annotations

from typing import Any

from taskqueue.exact_json import encode
from taskqueue.jsonable import NotJsonError
from taskqueue.limits import RESULT_BYTES, STORED_RESULT_BYTES
from taskqueue.results.reference import JSON, StoredResult


class ResultError(Exception):
    """A value that cannot be kept as a result; another attempt would not help.

    Attributes:
        type: the error type that the Task's status shows.
    """

    type = "InvalidResult"


class ResultTooLargeError(ResultError):
    """A result above a limit."""

    type = "ResultTooLarge"


def encode_result(value: Any, *, handler: str = "") -> bytes | StoredResult | None:
    """Return a result as JSON, None for none; one above `RESULT_BYTES` as a store has it.

    A dict, a pydantic model or a dataclass is the result itself, any other JSON value is wrapped as
    ``{"value": …}``.

    Args:
        value: what the handler returned.
        handler: its name, for the message of an error.

    Raises:
        ResultError: it is not JSON, or above `STORED_RESULT_BYTES`.
    """
    if value is None:
        return None
    try:
        encoded = encode(value, "result")
        if not encoded.startswith(b"{"):
            encoded = encode({"value": value}, "result")
    except NotJsonError as error:
        who = f"handler {handler!r}" if handler else "the handler"
        raise ResultError(f"{who} returned what is not JSON: {error}") from None
    return encoded if len(encoded) <= RESULT_BYTES else for_store(encoded, JSON)


def for_store(body: bytes, content_type: str) -> StoredResult:
    """Return a result for a store.

    Raises:
        ResultTooLargeError: it is above `STORED_RESULT_BYTES`.
    """
    if len(body) > STORED_RESULT_BYTES:
        raise ResultTooLargeError(
            f"the result has {len(body)} bytes, and a store takes {STORED_RESULT_BYTES}: write it "
            "to where it belongs in the handler, and return where that is"
        )
    return StoredResult(body, content_type)
