"""Errors of the Task clients; each text says what failed, why, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskqueue.direct.errors import ClientError, Refused

if TYPE_CHECKING:
    from taskqueue.client.batches import BatchStatus
    from taskqueue.client.status import TaskStatus


class Unavailable(ClientError):
    """The API server did not answer, even after retries."""


class NoArchive(ClientError):
    """There is no archive to read a history from, or it may not be read."""


class QuotaExceeded(Refused):
    """The namespace has as many Tasks as its ResourceQuota allows; later it may have room."""


class TaskConflict(ClientError):
    """Another Task with this name exists.

    Attributes:
        fields: the fields in which the specs differ, named as arguments of ``submit``.
    """

    def __init__(self, message: str, *, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


class TaskGone(ClientError):
    """The Task no longer exists: it was deleted, or created again under the same name.

    Attributes:
        status: its last known status; None: unknown.
    """

    def __init__(self, message: str, *, status: TaskStatus | None = None) -> None:
        super().__init__(message)
        self.status = status


class TaskFailed(ClientError):
    """The Task has failed.

    Attributes:
        status: its last status.
    """

    def __init__(self, message: str, *, status: TaskStatus) -> None:
        super().__init__(message)
        self.status = status


class TaskCancelled(ClientError):
    """The Task was cancelled.

    Attributes:
        status: its last status.
    """

    def __init__(self, message: str, *, status: TaskStatus) -> None:
        super().__init__(message)
        self.status = status


class WaitTimeout(ClientError, TimeoutError):
    """The Task has not ended in time. It continues; wait again, or cancel it.

    Attributes:
        status: its last known status; None: unknown.
    """

    def __init__(self, message: str, *, status: TaskStatus | None) -> None:
        super().__init__(message)
        self.status = status


class BatchGone(ClientError):
    """The TaskBatch does not exist: it was deleted, or created again under the same name."""


class BatchFailed(ClientError):
    """The TaskBatch has failed, or was cancelled.

    Attributes:
        status: its last status.
    """

    def __init__(self, message: str, *, status: BatchStatus) -> None:
        super().__init__(message)
        self.status = status


class ResultUnavailable(ClientError):
    """The Task has succeeded, and its result cannot be read from the store.

    Attributes:
        transient: it may be read later: the store or the API server did not answer.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class ResultExpired(ResultUnavailable):
    """The Task has succeeded, and its result has been deleted when its time was over."""
