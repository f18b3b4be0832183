"""What a handler saves for its next start, as JSON.

It travels as a JSON object: another value, or an object with the single field ``value``, is wrapped
as ``{"value": …}``, so that what is read is what was saved. Standard library only.
"""

from __future__ import annotations

import json
from typing import Any

from taskqueue.jsonable import plain
from taskqueue.limits import CHECKPOINT_BYTES


class CheckpointNeeded(BaseException):
    """Raised by `taskqueue.Context.last_checkpoint`: the message is too old to have it.

    It ends the attempt, uncounted, and the handler is called again with its last checkpoint. It is
    not an `Exception`, so ``except Exception`` does not catch it.
    """


def encode_checkpoint(value: Any) -> bytes:
    """Return a checkpoint as it travels.

    Raises:
        TypeError: JSON has no such value.
        ValueError: it is too large.
    """
    try:
        body = plain(value, "value")
        if not isinstance(body, dict) or body.keys() == {"value"}:
            body = plain({"value": body})
        encoded = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"checkpoint(value): {error}: give what JSON can say") from error
    size = len(encoded.encode())
    if size > CHECKPOINT_BYTES:
        raise ValueError(
            f"checkpoint(value): {size} bytes of JSON, the limit is {CHECKPOINT_BYTES}: store it "
            "elsewhere and save where it is"
        )
    return encoded.encode()


def decode_checkpoint(encoded: bytes) -> Any:
    """Return what was saved."""
    body = json.loads(encoded)
    return body["value"] if body.keys() == {"value"} else body
