"""Reports the errors of handlers as if it had found them itself."""

from __future__ import annotations

from typing import Any

from taskqueue.contract import outcome
from tests.conformance.broken import start


def _encode_error(error: outcome.EventError, *, prefixed: bool) -> dict[str, Any]:
    kind = outcome.RESERVED_PREFIX + error.type if prefixed else error.type
    return {"type": kind, "message": error.message, "retryable": error.retryable}


if __name__ == "__main__":
    outcome._encode_error = _encode_error
    start()
