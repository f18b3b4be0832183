"""Names results in a store, and says what a status knows of one: `status.resultRef`.

The key follows from the attempt (docs/reference/message-contract.md), on both sides. It is never
taken from a message: whoever may write outcomes may not choose what is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


class ResultDamagedError(Exception):
    """What the store has under the key is not what the worker wrote."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result as a store has it.

    Attributes:
        body: any bytes, at most `taskqueue.limits.STORED_RESULT_BYTES`.
        content_type: a media type, such as ``application/json``.
    """

    body: bytes
    content_type: str


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

    def check(self, result: StoredResult) -> None:
        """Compare what a store returned.

        Raises:
            ResultDamagedError: it is not what was written.
        """
        found = hashlib.sha256(result.body).hexdigest()
        if found != self.sha256:
            raise ResultDamagedError(
                f"the store has {len(result.body)} bytes with SHA-256 {found} as {self.key}, and "
                f"the worker wrote {self.size_bytes} bytes with {self.sha256}: somebody else "
                "writes into this store, or it has lost data"
            )


def result_key(*, namespace: str, queue: str, uid: str, attempt: int, epoch: int) -> str:
    """Return the key of an attempt's result."""
    return f"{queue_prefix(namespace, queue)}{uid}/{attempt}-{epoch}"


def queue_prefix(namespace: str, queue: str) -> str:
    """Return what the keys of all results of a queue begin with, and those of no other."""
    return f"{namespace}/{queue}/"


def reference_to(
    key: str, result: StoredResult, *, expiration_time: float | None = None
) -> ResultReference:
    """Return what a status says of a result."""
    return ResultReference(
        key=key,
        size_bytes=len(result.body),
        content_type=result.content_type,
        sha256=hashlib.sha256(result.body).hexdigest(),
        expiration_time=expiration_time,
    )
