"""From what a handler returned or raised to the result of the attempt.

Rules: a dict, a pydantic model or a dataclass is the result, None is no result, any other JSON
value is wrapped as ``{"value": …}``. Bytes, and what is too large for a Task's status, are for a
store; without one they are a failure that is not retried, and so is any other value that is not
JSON. Any exception is a failure that is retried, unless it is `Fail`.

What a handler returns or raises is its own code: texts that raise, classes that lie about their
name, values of any type. So this is the one place that reads them, in the thread or process the
handler ran in. `raised`, `succeeded` and `encoded_result` never raise, and what they return can be
published: plain strings of bounded length, finite numbers, JSON.
"""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from taskqueue.contract.outcome import EventError, without_prefix
from taskqueue.contract.text import cut
from taskqueue.exact_json import decode, decode_own
from taskqueue.jsonable import NotJsonError
from taskqueue.limits import (
    ERROR_MESSAGE_BYTES,
    LONGEST_RETRY_SECONDS,
    LONGEST_SNOOZE_SECONDS,
    RESULT_BYTES,
    STATUS_REASON_LENGTH,
    TEXT_RESULT_BYTES,
)
from taskqueue.results.binary import NEEDS_STORE, binary_of
from taskqueue.results.inline import ResultError, encode_result, for_store
from taskqueue.results.reference import JSON, StoredResult
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.sdk import Cancelled, CheckpointNeeded, Fail, Retry, Snooze

#: Characters of a traceback that reach the worker's log.
_TRACEBACK_LENGTH = 16_384

#: Exception groups within each other that are opened.
_GROUP_DEPTH = 20

#: Frames of a traceback in this folder are not the handler's.
_OUR_FOLDER = os.path.dirname(__file__) + os.sep

#: Made beforehand.
_UNREADABLE = EventError(
    type="Error",
    message="the handler ended in a way that cannot be read: what it raised or returned fails when "
    "it is looked at, or there is no memory left",
)

T = TypeVar("T")


class HandlerTraceback(Exception):
    """The traceback of a handler's exception, as text for the log.

    The exception itself would keep the handler's frames alive, and run its code on the worker's
    loop.
    """

    def __str__(self) -> str:
        return f"of a handler\n{self.args[0]}"


def succeeded(value: Any, seconds: float, *, handler: str = "") -> AttemptResult:
    """Return the result of a handler that returned ``value``.

    The result is a copy made from the encoded JSON: what is checked here is what is published,
    whatever the handler does to its object later.
    """
    encoded = encoded_result(value, seconds, handler=handler)
    if isinstance(encoded, AttemptResult):
        return encoded
    if encoded is None:
        return AttemptResult(seconds=seconds)
    if isinstance(encoded, StoredResult):
        return AttemptResult(seconds=seconds, unstored=encoded)
    return _given(
        lambda: AttemptResult(seconds=seconds, result=decode_own(encoded)),
        partial(_unreadable, seconds),
    )


def encoded_result(
    value: Any, seconds: float, *, handler: str = ""
) -> bytes | StoredResult | AttemptResult | None:
    """Return the result of a handler that returned ``value`` as JSON, None for none; or a failure.

    What no status takes is returned as a store has it.

    Args:
        value: what it returned.
        seconds: how long it ran.
        handler: its name, for the message of a failure.
    """
    try:
        binary = binary_of(value)
        if binary is not None:
            return for_store(binary.body, binary.content_type)
        return encode_result(value, handler=handler)
    except BaseException as error:
        describe = partial(_not_encoded, value, error, seconds, handler)
        return _given(describe, partial(_unreadable, seconds))


def _not_encoded(value: Any, problem: BaseException, seconds: float, handler: str) -> AttemptResult:
    """Return the failure of a value that cannot be encoded; may raise what that raises."""
    if isinstance(problem, ResultError):
        kind, reason = problem.type, str(problem)
    else:
        kind = "InvalidResult"
        reason = (
            f"handler {handler!r} returned {_class_name(value)}, which fails when it is encoded: "
            f"{_class_name(problem)}: {_text(problem)}"
        )
    if _given(lambda: hasattr(type(value), "__await__"), lambda: False):
        reason = (
            f"handler {handler!r} returned {_class_name(value)}, which nobody awaits: "
            "define the handler with async def"
        )
        with contextlib.suppress(BaseException):
            value.close()  # or Python warns that it was never awaited
    return failure(kind, reason, seconds, retryable=False)


def parsed_result(text: bytes, seconds: float, *, handler: str, where: str) -> AttemptResult:
    """Return the result of a program or service that gave a JSON object as text.

    Args:
        text: as it was written; within a limit in bytes.
        seconds: how long it ran.
        handler: its name, for the message of a failure.
        where: where the text was, for the message too.
    """
    try:
        value = decode(text, "result")
    except NotJsonError as error:
        problem = str(error)
    except ValueError as error:
        problem = f"it is not a JSON object: {error}"
    else:
        if isinstance(value, dict):
            return succeeded(value, seconds, handler=handler)
        problem = f"it is not a JSON object but {type(value).__name__}"
    reason = f"handler {handler!r} gave a result {where}: {problem}"
    return failure("InvalidResult", reason, seconds, retryable=False)


def too_large(seconds: float) -> AttemptResult:
    """Return the failure of a program's or service's result, which was not read to its end."""
    reason = (
        f"the result has more than {TEXT_RESULT_BYTES} bytes, the limit for programs and services: "
        "store it elsewhere and return where it is"
    )
    return failure("ResultTooLarge", reason, seconds, retryable=False)


def not_stored(result: AttemptResult, *, direct: bool) -> AttemptResult:
    """Return the failure of a result that only a store can keep, where there is none.

    Args:
        result: of an attempt that succeeded.
        direct: it is a direct message's, which no store keeps.
    """
    unstored = result.unstored
    if unstored is None:
        return result
    size, kind = len(unstored.body), unstored.content_type
    advice = (
        "store it elsewhere and return where it is; only the results of Tasks go to a store"
        if direct
        else NEEDS_STORE
    )
    if kind != JSON:
        reason = f"the result is {size} bytes of {kind}, and a status takes JSON only: {advice}"
        return failure("InvalidResult", reason, result.seconds, retryable=False)
    reason = f"the result is {size} bytes of JSON, the limit is {RESULT_BYTES}: {advice}"
    return failure("ResultTooLarge", reason, result.seconds, retryable=False)


def raised(exception: BaseException, seconds: float) -> AttemptResult:
    """Return the result of a handler that raised.

    An exception group with a single exception in it stands for that exception.
    """
    return _given(partial(_raised, exception, seconds), partial(_unreadable, seconds))


def _raised(exception: BaseException, seconds: float) -> AttemptResult:
    """Return the result of a handler that raised; may raise what its exception raises."""
    group = exception
    exception = _given(lambda: _single(group), lambda: group)
    kind = type(exception)
    given: Any = exception
    if issubclass(kind, Fail):
        name = _given(lambda: given.type, lambda: "Fail")
        return failure(name, _text(exception), seconds, retryable=False, reserved=False)
    if issubclass(kind, Retry):
        after = _given(lambda: given.after, _nothing)
        return failure(
            _class_name(exception), _text(exception), seconds, reserved=False, retry_after=after
        )
    if issubclass(kind, CheckpointNeeded):
        return AttemptResult(seconds=seconds, released=True)
    if issubclass(kind, Snooze):
        return snoozed(_given(lambda: given.seconds, _nothing), seconds)
    return failure(
        _class_name(exception),
        _text(exception),
        seconds,
        reserved=False,
        traceback=None if issubclass(kind, Cancelled) else describe_traceback(exception),
    )


def snoozed(wait: object, seconds: float) -> AttemptResult:
    """Return the result of a handler that asked to be called again after ``wait`` seconds."""
    wanted = _given(lambda: _wait(wait, LONGEST_SNOOZE_SECONDS), _nothing)
    return AttemptResult(seconds=seconds, snooze_seconds=wanted or 0.0)


def not_snoozed(result: AttemptResult, *, direct: bool) -> AttemptResult:
    """Return the result of a handler that asked to be called again, where nobody does.

    A direct message has failed for good. A Task of an operator that knows no snooze has failed, and
    is retried after that time.
    """
    if not direct:
        return failure(
            "Snooze",
            "the operator is older than this worker and knows no snooze: update it",
            result.seconds,
            retry_after=result.snooze_seconds,
        )
    return failure(
        "NotSnoozed",
        "a direct message cannot be snoozed, because no Task keeps it: create a Task instead",
        result.seconds,
        retryable=False,
    )


def describe_exception(exception: BaseException) -> str:
    """Return class and text of a handler's or hook's exception. Never raises."""
    return encodable(f"{_class_name(exception)}: {_text(exception)}", ERROR_MESSAGE_BYTES)


def describe_traceback(exception: BaseException) -> str:
    """Return the traceback of a handler's or hook's exception, without our own frames at its top.

    Never raises.
    """
    try:
        begin = exception.__traceback__
        while begin and begin.tb_next and _is_ours(begin.tb_frame.f_code.co_filename):
            begin = begin.tb_next
        lines = traceback.format_exception(type(exception), exception, begin)
        text = encodable("".join(lines).rstrip())
    except BaseException as error:
        return f"{_class_name(exception)} (its traceback cannot be read: {_class_name(error)})"
    return text if len(text) <= _TRACEBACK_LENGTH else "…" + text[-_TRACEBACK_LENGTH:]


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
    kind: object,
    message: str,
    seconds: float,
    *,
    retryable: bool = True,
    reserved: bool = True,
    retry_after: object = None,
    traceback: str | None = None,
) -> AttemptResult:
    """Return a failed result that can be published, whatever the arguments are.

    Args:
        kind: type of the error; cut to `STATUS_REASON_LENGTH`, ``Error`` if it is no text.
        message: for people; cut to `ERROR_MESSAGE_BYTES`.
        seconds: how long it ran.
        retryable: another attempt may help.
        reserved: the worker has found the failure; else ``kind`` is an application's word, and
            loses the prefix of ours.
        retry_after: seconds until that; what is no number counts as None, what is above
            `LONGEST_RETRY_SECONDS` as that.
        traceback: for the worker's log.
    """
    # Not `isinstance`: an object may lie about its class, or fail when it is asked for it.
    name = encodable(kind, STATUS_REASON_LENGTH) if issubclass(type(kind), str) else ""  # type: ignore[arg-type]
    if not reserved:
        name = without_prefix(name)
    return AttemptResult(
        seconds=seconds,
        error=EventError(
            type=name or "Error",
            message=cut(encodable(message, ERROR_MESSAGE_BYTES), ERROR_MESSAGE_BYTES),
            retryable=retryable,
            reserved=reserved,
        ),
        retry_after_seconds=_given(lambda: _wait(retry_after, LONGEST_RETRY_SECONDS), _nothing),
        exception=None if traceback is None else HandlerTraceback(traceback),
    )


def encodable(text: str, length: int | None = None) -> str:
    """Return a plain `str` without lone surrogates, which UTF-8 cannot encode.

    Args:
        text: a string of any class.
        length: characters; a longer one is cut, and ends with an ellipsis.
    """
    if length is not None and str.__len__(text) > length:
        text = str.__getitem__(text, slice(length - 1)) + "…"
    return str.encode(text, "utf-8", "replace").decode("utf-8")


def _given(what: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Return what a handler's object gives when it is read, or something else when that fails."""
    try:
        return what()
    except BaseException:
        return otherwise()


def _nothing() -> None:
    return None


def _unreadable(seconds: float) -> AttemptResult:
    """Return the result of an end that cannot even be described, for want of memory, say."""
    return AttemptResult(seconds=seconds, error=_UNREADABLE)


def _single(exception: BaseException) -> BaseException:
    """Return the exception that a group of one stands for."""
    for _ in range(_GROUP_DEPTH):
        if not issubclass(type(exception), BaseExceptionGroup):
            break
        inner: tuple[BaseException, ...] = exception.exceptions  # type: ignore[attr-defined]
        if len(inner) != 1:
            break
        exception = inner[0]
    return exception


def _text(exception: BaseException) -> str:
    """Return an exception's text, as a plain `str`: of another class it could fail later."""
    try:
        return encodable(str(exception), ERROR_MESSAGE_BYTES)
    except BaseException as error:
        return f"(the exception's own text failed: {_class_name(error)})"


def _class_name(value: object) -> str:
    """Return the name of a value's class; a metaclass may give another, or raise."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def _wait(seconds: Any, longest: int) -> float | None:
    if seconds is None:
        return None
    wait = float(seconds)
    return None if math.isnan(wait) or wait < 0 else min(wait, float(longest))


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OUR_FOLDER)
