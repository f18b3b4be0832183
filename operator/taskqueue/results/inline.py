"""A result that is kept inline, in the status of its Task: an object within the limit of a status.

Which Python values are JSON is decided in `taskqueue.jsonable`. Stores for results that are too
large for a status belong beside this module; there is none yet.
"""

from __future__ import annotations

from typing import Any

from taskqueue.exact_json import encode
from taskqueue.jsonable import NotJsonError
from taskqueue.limits import RESULT_BYTES


class ResultError(Exception):
    """A value that cannot be kept as a result; another attempt would not help.

    Attributes:
        type: the error type that the Task's status shows.
    """

    type = "InvalidResult"


class ResultTooLargeError(ResultError):
    """A result above the limit of a status."""

    type = "ResultTooLarge"


def encode_result(value: Any, *, handler: str = "") -> bytes | None:
    """Return a result as JSON, None for none.

    A dict, a pydantic model or a dataclass is the result itself, any other JSON value is wrapped as
    ``{"value": …}``.

    Args:
        value: what the handler returned.
        handler: its name, for the message of an error.

    Raises:
        ResultError: it is not JSON, or above `RESULT_BYTES`.
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
    if len(encoded) > RESULT_BYTES:
        raise ResultTooLargeError(
            f"the result is {len(encoded)} bytes of JSON, the limit is {RESULT_BYTES}: "
            "store it elsewhere and return where it is"
        )
    return encoded
