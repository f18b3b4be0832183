"""A Task as a program sees it: read from what the API server gives, tolerant of what is new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Phases that never change.
FINISHED = ("Succeeded", "Failed", "Cancelled")


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """How far a running attempt is, as its handler says.

    Attributes:
        percent: 0 to 100, or None.
        message: for people.
    """

    percent: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """How far a Task is; the fields are those of its status.

    Attributes:
        phase: Pending, Blocked, Scheduled, Suspended, Running, Retrying, Succeeded, Failed or
            Cancelled.
        reason: why, one word for programs, such as QueueNotFound.
        message: why, for people.
        attempts: how many were begun.
        worker: pod of the present or last attempt, or empty.
        progress: of the running attempt, or None.
        result: what the handler returned, or None.
    """

    phase: str
    reason: str
    message: str
    attempts: int
    worker: str
    progress: TaskProgress | None
    result: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether it will never change again."""
        return self.phase in FINISHED

    def __str__(self) -> str:
        """Return phase, reason and message, as far as there are any."""
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
    )


def result_of(status: TaskStatus) -> TaskResult:
    """Return what there is to say of a Task's end."""
    return TaskResult(
        phase=status.phase,
        result=status.result,
        attempts=status.attempts,
        reason=status.reason,
        message=status.message,
    )
