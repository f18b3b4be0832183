"""What can go wrong for a program; every text says of what, why, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskqueue.direct.errors import ClientError

if TYPE_CHECKING:
    from taskqueue.client.status import TaskStatus


class Unavailable(ClientError):
    """The API server could not be asked, not even after trying again for a while."""


class TaskConflict(ClientError):
    """A Task of this name exists and is another one.

    Attributes:
        fields: where the specs differ, named as arguments of ``submit``.
    """

    def __init__(self, message: str, *, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


class TaskGone(ClientError):
    """The Task does not exist any more: deleted, or made anew under its name.

    Attributes:
        status: what was last seen of it; None: nothing.
    """

    def __init__(self, message: str, *, status: TaskStatus | None = None) -> None:
        super().__init__(message)
        self.status = status


class TaskFailed(ClientError):
    """The Task has failed for good.

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
    """The Task has not ended in time. It goes on; wait again, or cancel it.

    Attributes:
        status: what was last seen of it; None: nothing.
    """

    def __init__(self, message: str, *, status: TaskStatus | None) -> None:
        super().__init__(message)
        self.status = status
