"""The protocol between worker and child process: frames over a stream socket.

A frame is its kind (one byte), the length of its body (four bytes, big-endian) and the body. Both
ends come from one image, so there are no versions. Bodies are JSON, or a line of the log as it is
to be written.
"""

from __future__ import annotations

import struct
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from taskqueue.contract.outcome import EventError
from taskqueue.exact_json import decode, decode_own
from taskqueue.limits import JSON_DEPTH, MEDIA_TYPE_LENGTH, STORED_RESULT_BYTES
from taskqueue.results.binary import is_media_type
from taskqueue.results.reference import StoredResult
from taskqueue.worker.checkpoints import read_checkpoint
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.outcome import encodable, failure, snoozed
from taskqueue.worker.sdk import Progress

#: From the worker: run this; `encode_attempt`.
ATTEMPT = 1
#: From the worker: the running attempt is to end. A SIGTERM follows; one without this frame is
#: somebody else's, and the attempt goes on.
CANCEL = 2
#: From the child: the attempt has ended; `encode_outcome`.
OUTCOME = 3
#: From the child: how far the attempt is; `encode_progress`.
PROGRESS = 4
#: From the child: a line for the worker's log, formatted, without its end.
LOG = 5
#: From the child: its start hooks have succeeded; no body.
STARTED = 8
#: From the child: a start hook failed, and the child ends; the body is the traceback.
UNUSABLE = 6

#: From the child: a checkpoint, as `taskqueue.worker.sdk.checkpoints` encodes it.
CHECKPOINT = 7

#: From the child, before OUTCOME: a result that no status takes; `encode_result`.
RESULT = 9

_HEADER = struct.Struct("!BI")

#: How much is read at once.
CHUNK_BYTES = 65_536

#: Of a log line; what is longer is cut.
LOG_LINE_BYTES = 262_144

#: Of a frame from a child other than RESULT: more than any of them needs.
CHILD_FRAME_BYTES = 1_048_576

#: Of RESULT.
_RESULT_FRAME_BYTES = MEDIA_TYPE_LENGTH + 1 + STORED_RESULT_BYTES


class ProtocolError(ValueError):
    """What the other end sent is not this protocol: something else has written to the socket."""


class ChildOutcome(NamedTuple):
    """The end of an attempt in a child.

    Attributes:
        result: of the attempt.
        mib: memory the child holds now, in MiB; None: not reported.
        leftover: why the child must not run another attempt; "": it may.
    """

    result: AttemptResult
    mib: float | None
    leftover: str


def frame(kind: int, body: bytes = b"") -> bytes:
    """Return a frame."""
    return _HEADER.pack(kind, len(body)) + body


class FrameReader:
    """Splits what a stream socket gives into frames.

    Args:
        limit: bytes that the body of a frame may have, unless it is RESULT; None: any number.
    """

    __slots__ = ("_limit", "_missing", "_rest")

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        #: What there is of a frame, and how much more completes it, as far as known.
        self._rest = bytearray()
        self._missing = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames that are complete with this data, in order.

        Raises:
            ProtocolError: a frame is longer than the limit.
        """
        if self._rest:
            self._rest += data
            self._missing -= len(data)
            if self._missing > 0:  # a long frame is not looked at with each piece of it
                return []
            data = bytes(self._rest)
            self._rest = bytearray()
        size = len(data)
        frames = []
        begin = 0
        missing = 1
        while size - begin >= _HEADER.size:
            kind, length = _HEADER.unpack_from(data, begin)
            limit = _RESULT_FRAME_BYTES if kind == RESULT else self._limit
            if self._limit is not None and limit is not None and length > limit:
                raise ProtocolError(f"a frame of {length} bytes, the limit is {limit}")
            end = begin + _HEADER.size + length
            if end > size:
                missing = end - size
                break
            frames.append((kind, data[begin + _HEADER.size : end]))
            begin = end
        if begin < size:
            self._rest += data[begin:]
            self._missing = missing
        return frames


def encode_attempt(handler: str, attempt: AttemptRequest) -> bytes:
    """Return the body of ATTEMPT.

    Raises:
        TypeError: the payload is nested deeper than can be passed on.
    """
    return orjson.dumps(
        (
            handler,
            attempt.payload,
            attempt.task,
            attempt.uid,
            attempt.queue,
            attempt.attempt,
            attempt.max_attempts,
            attempt.timeout_seconds,
            attempt.fence,
            None if attempt.checkpoint is None else attempt.checkpoint.decode(),
            attempt.checkpoint_known,
            attempt.scheduled_time,
            attempt.index,
        )
    )


def decode_attempt(body: bytes) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return handler, payload, and the arguments of a `taskqueue.worker.sdk.Context`."""
    handler, payload, task, uid, queue, attempt, max_attempts, timeout, fence, *saved = decode_own(
        body
    )
    checkpoint, checkpoint_known, scheduled, index = saved
    return (
        handler,
        payload,
        {
            "task": task,
            "uid": uid,
            "queue": queue,
            "attempt": attempt,
            "max_attempts": max_attempts,
            "timeout_seconds": timeout,
            "fence": fence,
            "checkpoint": None if checkpoint is None else checkpoint.encode(),
            "checkpoint_known": checkpoint_known,
            "scheduled_time": None if scheduled is None else datetime.fromisoformat(scheduled),
            "index": index,
        },
    )


def encode_outcome(
    result: AttemptResult | bytes | None,
    seconds: float,
    *,
    mib: float | None = None,
    leftover: str = "",
) -> bytes:
    """Return the body of OUTCOME.

    Args:
        result: the encoded result of a success, None without one; or what else it ended as.
        seconds: how long it ran.
        mib: memory the child holds now, in MiB; None: not reported.
        leftover: why the child must not run another attempt.
    """
    if result is None or isinstance(result, bytes):
        fragment = None if result is None else orjson.Fragment(result)
        return orjson.dumps((seconds, mib, encodable(leftover), fragment))
    if result.snooze_seconds is not None or result.released:
        return orjson.dumps((seconds, mib, encodable(leftover), None, result.snooze_seconds))
    error = result.error or EventError(type="Error", message="")
    traceback = None if result.exception is None else result.exception.args[0]
    said = (error.type, error.message, error.retryable, error.reserved)
    failed = (*said, result.retry_after_seconds, traceback)
    return orjson.dumps((seconds, mib, encodable(leftover), None, *failed))


def encode_result(result: StoredResult) -> bytes:
    """Return the body of RESULT."""
    return b"%s\n%s" % (result.content_type.encode(), result.body)


def decode_result(body: bytes) -> StoredResult:
    """Return the result of a RESULT body.

    Raises:
        ProtocolError: it is none.
    """
    kind, separator, content = body.partition(b"\n")
    content_type = kind.decode("ascii", "replace")
    if not separator or not is_media_type(content_type):
        raise ProtocolError("not a result with its content type")
    return StoredResult(content, content_type)


def decode_outcome(body: bytes) -> ChildOutcome:
    """Return what an OUTCOME body says.

    Raises:
        ProtocolError: it is not an outcome.
    """
    try:
        seconds, mib, leftover, result, *failed = decode(body, depth=JSON_DEPTH + 1)
        if failed == [None]:
            ended = AttemptResult(seconds=_float(seconds), released=True)
        elif len(failed) == 1:
            ended = snoozed(failed[0], _float(seconds))
        elif failed:
            kind, message, retryable, reserved, retry_after, traceback = failed
            ended = failure(
                kind,
                str(message),
                _float(seconds),
                retryable=bool(retryable),
                reserved=bool(reserved),
                retry_after=retry_after,
                traceback=None if traceback is None else str(traceback),
            )
        else:
            ended = AttemptResult(seconds=_float(seconds), result=_dict(result))
        return ChildOutcome(ended, None if mib is None else _float(mib), str(leftover))
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"not an outcome: {error}") from None


def encode_progress(progress: Progress) -> bytes:
    """Return the body of PROGRESS."""
    return orjson.dumps((progress.percent, encodable(progress.message)))


def decode_progress(body: bytes) -> Progress:
    """Return the progress of a PROGRESS body.

    Raises:
        ProtocolError: it is not progress.
    """
    try:
        percent, message = decode(body)
        return Progress(None if percent is None else _float(percent), str(message))
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"not progress: {error}") from None


def decode_checkpoint(body: bytes) -> bytes:
    """Return the checkpoint of a CHECKPOINT body.

    Raises:
        ProtocolError: it is no checkpoint.
    """
    try:
        read_checkpoint(body)
    except ValueError as error:
        raise ProtocolError(f"not a checkpoint: {error}") from None
    return body


def _float(value: Any) -> float:
    if not isinstance(value, float | int):
        raise TypeError(f"{type(value).__name__} is not a number")
    return float(value)


def _dict(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} is not an object")
    return value
