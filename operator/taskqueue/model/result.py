"""A result that is kept in a store, as a status names it: `status.resultRef`.

The key follows from the attempt (docs/reference/message-contract.md), on both sides. It is never
taken from a message: whoever may write outcomes may not choose what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskqueue.timestamps import to_rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReference:
    """Where a result is, and what it is.

    Attributes:
        key: of `result_key`.
        size_bytes: of the body.
        content_type: a media type.
        sha256: of the body, in hexadecimal digits.
        expiration_time: when it may be deleted, in seconds since the epoch; None: never.
    """

    key: str
    size_bytes: int
    content_type: str
    sha256: str
    expiration_time: float | None = None

    def fields(self) -> dict[str, Any]:
        """Return it as a status and a completion event say it."""
        fields: dict[str, Any] = {
            "key": self.key,
            "sizeBytes": self.size_bytes,
            "contentType": self.content_type,
            "sha256": self.sha256,
        }
        if self.expiration_time is not None:
            fields["expirationTime"] = to_rfc3339(self.expiration_time)
        return fields


def result_key(*, namespace: str, queue: str, uid: str, attempt: int, epoch: int) -> str:
    """Return the key of an attempt's result."""
    return f"{queue_prefix(namespace, queue)}{uid}/{attempt}-{epoch}"


def output_key(*, namespace: str, queue: str, uid: str, attempt: int, epoch: int) -> str:
    """Return the key of what an attempt has printed."""
    return f"{queue_prefix(namespace, queue)}{uid}/{attempt}-{epoch}.output"


def queue_prefix(namespace: str, queue: str) -> str:
    """Return what the keys of all results of a queue begin with, and those of no other."""
    return f"{namespace}/{queue}/"
