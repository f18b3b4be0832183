"""What can go wrong for a program that sends messages; every text says of what, why, what to do.

`ClientError` is the base of the Kubernetes client's errors too: programs catch one class.
"""

from __future__ import annotations


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
