"""A result as a store has it, and whether that is the one a status names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from taskqueue.model.result import ResultReference

#: The content type of JSON: what a handler returns as a value, and not as bytes.
JSON = "application/json"


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


def check_result(reference: ResultReference, result: StoredResult) -> None:
    """Compare what a store returned with what a status says of it.

    Raises:
        ResultDamagedError: it is not what was written.
    """
    found = hashlib.sha256(result.body).hexdigest()
    if found != reference.sha256:
        raise ResultDamagedError(
            f"the store has {len(result.body)} bytes with SHA-256 {found} as {reference.key}, and "
            f"the worker wrote {reference.size_bytes} bytes with {reference.sha256}: somebody else "
            "writes into this store, or it has lost data"
        )
