"""Errors of producers; each text says what failed, why, and what to do.

`ClientError` is also the base of the Task clients' errors, so that programs can catch one class.
"""

from __future__ import annotations


class ClientError(Exception):
    """The base of the errors of all clients."""


class Refused(ClientError):
    """The API server or the broker refused the request; repeating it at once will not help.

    Attributes:
        status: HTTP status of the API server, or AMQP reply code of the broker.
        reason: the API server's reason, such as Forbidden or Invalid; "" from the broker.
    """

    def __init__(self, message: str, *, status: int, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Unroutable(ClientError):
    """No queue receives the message, which is dropped."""


class NotConfirmed(ClientError):
    """The broker did not confirm in time: a message may be in its queue or not.

    Attributes:
        confirmed: number of messages of the call that are in the queue for certain.
    """

    def __init__(self, message: str, *, confirmed: int) -> None:
        super().__init__(message)
        self.confirmed = confirmed
