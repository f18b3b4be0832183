"""The status of a Task for programs, read from the object; unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.model.result import ResultReference
from taskqueue.timestamps import from_rfc3339

#: Phases that never change.
FINISHED = ("Succeeded", "Failed", "Cancelled")


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """The progress of a running attempt, as its handler reports it.

    Attributes:
        percent: 0 to 100; None: not reported.
        message: for people.
    """

    percent: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """The status of a Task; the fields are those of the object's status.

    Attributes:
        phase: Pending, Blocked, Scheduled, Suspended, Running, Retrying, Succeeded, Failed or
            Cancelled.
        reason: why, for programs: one word, such as QueueNotFound.
        message: why, for people.
        attempts: number of attempts started.
        worker: pod of the present or last attempt; "" for none.
        progress: of the running attempt; None: not reported.
        result: what the handler returned; None: nothing, or it is in a store.
        result_ref: where what the handler returned is, in a store; None: in none.
    """

    phase: str
    reason: str
    message: str
    attempts: int
    worker: str
    progress: TaskProgress | None
    result: dict[str, Any] | None
    result_ref: ResultReference | None = None

    @property
    def finished(self) -> bool:
        """Whether the phase is final."""
        return self.phase in FINISHED

    def __str__(self) -> str:
        """Return phase, reason and message, without those that are empty."""
        known = ": ".join(part for part in (self.reason, self.message) if part)
        return f"{self.phase}, {known}" if known else self.phase


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """How a Task ended; the fields are those of `TaskStatus`."""

    phase: str
    result: dict[str, Any] | None
    attempts: int
    reason: str
    message: str
    result_ref: ResultReference | None = None


def status_of(task: Mapping[str, Any]) -> TaskStatus:
    """Return the status of a Task object."""
    status = task.get("status") or {}
    progress = status.get("progress")
    return TaskStatus(
        phase=status.get("phase", "Pending"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        attempts=status.get("attempts", 0),
        worker=status.get("worker", ""),
        progress=(
            None
            if progress is None
            else TaskProgress(progress.get("percent"), progress.get("message", ""))
        ),
        result=status.get("result"),
        result_ref=reference_of(status.get("resultRef")),
    )


def result_of(status: TaskStatus) -> TaskResult:
    """Return the result of a Task that has ended with this status."""
    return TaskResult(
        phase=status.phase,
        result=status.result,
        attempts=status.attempts,
        reason=status.reason,
        message=status.message,
        result_ref=status.result_ref,
    )


def reference_of(found: Mapping[str, Any] | None) -> ResultReference | None:
    """Return what ``status.resultRef`` says; None: it is absent."""
    if found is None:
        return None
    expires = found.get("expirationTime")
    return ResultReference(
        key=found["key"],
        size_bytes=found["sizeBytes"],
        content_type=found["contentType"],
        sha256=found["sha256"],
        expiration_time=None if expires is None else from_rfc3339(expires),
    )
