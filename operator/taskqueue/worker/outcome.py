"""From what a handler returned or raised to the result of the attempt.

Rules: a dict, a pydantic model or a dataclass is the result, None is no result, any other JSON
value is wrapped as ``{"value": …}``. A value that is not JSON, or is too large for a Task's status,
is a failure that is not retried. Any exception is a failure that is retried, unless it is `Fail`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from taskqueue.contract.outcome import EventError
from taskqueue.results.inline import ResultError, encode_result
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.sdk import Fail, Retry

#: Characters of an error message that reach the Task's history.
MAX_MESSAGE_LENGTH = 1000


def succeeded(value: Any, seconds: float, *, handler: str = "") -> AttemptResult:
    """Return the result of a handler that returned ``value``.

    The result is a copy made from the encoded JSON: what is checked here is what is published,
    whatever the handler does to its object later.
    """
    encoded = encoded_result(value, seconds, handler=handler)
    if isinstance(encoded, AttemptResult):
        return encoded
    return AttemptResult(seconds=seconds, result=None if encoded is None else orjson.loads(encoded))


def encoded_result(
    value: Any, seconds: float, *, handler: str = ""
) -> bytes | AttemptResult | None:
    """Return the result of a handler that returned ``value`` as JSON, None for none; or a failure.

    Args:
        value: what it returned.
        seconds: how long it ran.
        handler: its name, for the message of a failure.
    """
    try:
        return encode_result(value, handler=handler)
    except ResultError as error:
        return failure(error.type, str(error), seconds, retryable=False)


def raised(exception: BaseException, seconds: float) -> AttemptResult:
    """Return the result of a handler that raised."""
    if isinstance(exception, Fail):
        return failure(
            exception.type, str(exception), seconds, retryable=False, exception=exception
        )
    return failure(
        type(exception).__name__,
        _message(exception),
        seconds,
        exception=exception,
        retry_after=exception.after if isinstance(exception, Retry) else None,
    )


def unknown_handler(name: str | None, registered: Iterable[str]) -> AttemptResult:
    """Return the result of an attempt whose handler this worker does not have.

    Retryable: during a rolling update another worker may know the handler already.
    """
    names = ", ".join(sorted(registered)) or "none"
    what = (
        f"no handler is called {name!r} here"
        if name
        else "the message names no handler and none is marked default=True"
    )
    return failure("UnknownHandler", f"{what}; registered: {names}", 0.0)


def failure(
    kind: str,
    message: str,
    seconds: float,
    *,
    retryable: bool = True,
    retry_after: float | None = None,
    exception: BaseException | None = None,
) -> AttemptResult:
    """Return a failed result; the message is cut to `MAX_MESSAGE_LENGTH` characters."""
    if len(message) > MAX_MESSAGE_LENGTH:
        message = message[: MAX_MESSAGE_LENGTH - 1] + "…"
    return AttemptResult(
        seconds=seconds,
        error=EventError(type=encodable(kind), message=encodable(message), retryable=retryable),
        retry_after_seconds=retry_after,
        exception=exception,
    )


def _message(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception as error:
        return f"(the exception's own text failed: {type(error).__name__})"


def encodable(text: str) -> str:
    """Return the text without lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
