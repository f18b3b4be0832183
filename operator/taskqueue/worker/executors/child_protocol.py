"""The protocol between worker and child process: frames over a stream socket.

A frame is its kind (one byte), the length of its body (four bytes, big-endian) and the body. Both
ends come from one image, so there are no versions. Bodies are JSON, or a line of the log as it is
to be written.
"""

from __future__ import annotations

import struct
from typing import Any

import orjson

from taskqueue.contract.outcome import EventError
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.outcome import encodable
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
#: From the child: a start hook failed, and the child ends; the body is the traceback.
UNUSABLE = 6

_HEADER = struct.Struct("!BI")

#: How much is read at once.
CHUNK_BYTES = 65_536


class ChildTraceback(Exception):
    """A traceback from a child process, as text for the log."""

    def __str__(self) -> str:
        return f"in a child process\n{self.args[0]}"


def frame(kind: int, body: bytes = b"") -> bytes:
    """Return a frame."""
    return _HEADER.pack(kind, len(body)) + body


class FrameReader:
    """Splits what a stream socket gives into frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames that are complete with this data, in order."""
        if self._rest:
            data = self._rest + data
        size = len(data)
        frames = []
        begin = 0
        while size - begin >= _HEADER.size:
            kind, length = _HEADER.unpack_from(data, begin)
            end = begin + _HEADER.size + length
            if end > size:
                break
            frames.append((kind, data[begin + _HEADER.size : end]))
            begin = end
        self._rest = data[begin:]
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
        )
    )


def decode_attempt(body: bytes) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return handler, payload, and the arguments of a `taskqueue.worker.sdk.Context`."""
    handler, payload, task, uid, queue, attempt, max_attempts, timeout, fence = orjson.loads(body)
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
        },
    )


def encode_outcome(
    result: AttemptResult | bytes | None,
    seconds: float,
    *,
    traceback: str | None = None,
    mib: float | None = None,
) -> bytes:
    """Return the body of OUTCOME.

    Args:
        result: the encoded result of a success, None without one; or a failure.
        seconds: how long it ran.
        traceback: of the exception.
        mib: memory the child holds now, in MiB; None: not reported.
    """
    if result is None or isinstance(result, bytes):
        fragment = None if result is None else orjson.Fragment(result)
        return orjson.dumps((seconds, mib, fragment))
    error = result.error or EventError(type="Error", message="")
    failed = (error.type, error.message, error.retryable, result.retry_after_seconds, traceback)
    return orjson.dumps((seconds, mib, None, *failed))


def decode_outcome(body: bytes) -> tuple[AttemptResult, float | None]:
    """Return the result of the attempt, and the memory the child holds now, in MiB, or None."""
    seconds, mib, result, *failed = orjson.loads(body)
    if not failed:
        return AttemptResult(seconds=seconds, result=result), mib
    kind, message, retryable, retry_after, traceback = failed
    return (
        AttemptResult(
            seconds=seconds,
            error=EventError(type=kind, message=message, retryable=retryable),
            retry_after_seconds=retry_after,
            exception=None if traceback is None else ChildTraceback(traceback),
        ),
        mib,
    )


def encode_progress(progress: Progress) -> bytes:
    """Return the body of PROGRESS."""
    return orjson.dumps((progress.percent, encodable(progress.message)))


def decode_progress(body: bytes) -> Progress:
    """Return the progress of a PROGRESS body."""
    percent, message = orjson.loads(body)
    return Progress(percent, message)
