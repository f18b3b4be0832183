"""What can go wrong for a program; every text says of what, why, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskqueue.client.status import TaskStatus


class ClientError(Exception):
    """The base of all errors here."""


class Refused(ClientError):
    """The API server, or the broker, refused; asking again as before is of no use.

    Attributes:
        status: HTTP status of the API server, or AMQP code of the broker.
        reason: the API server's word for it, such as Forbidden or Invalid; empty from the broker.
    """

    def __init__(self, message: str, *, status: int, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


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


class Unroutable(ClientError):
    """No queue takes the message: it is nowhere."""


class NotConfirmed(ClientError):
    """The broker did not confirm in time: a message may be in its queue or not.

    Attributes:
        confirmed: how many messages of the call are in the queue for certain.
    """

    def __init__(self, message: str, *, confirmed: int) -> None:
        super().__init__(message)
        self.confirmed = confirmed
