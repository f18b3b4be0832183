"""Reads checkpoints that come as text: from a message, a child process, a program or a service.

What is no checkpoint is refused here, in one place, with a reason for people.
"""

from __future__ import annotations

from typing import Any

import orjson

from taskqueue.exact_json import decode
from taskqueue.limits import CHECKPOINT_BYTES
from taskqueue.logs import EventLog
from taskqueue.worker.executor import AttemptRequest
from taskqueue.worker.sdk.checkpoints import decode_checkpoint, encode_checkpoint

log = EventLog("taskqueue.worker")

#: Of a checkpoint as a program or a service writes it: with spaces, line ends and escapes.
WRITTEN_BYTES = 4 * CHECKPOINT_BYTES


def read_checkpoint(text: bytes, *, limit: int = CHECKPOINT_BYTES) -> dict[str, Any]:
    """Return the JSON object that a checkpoint is.

    Args:
        text: of any length, from anybody.
        limit: bytes it may have.

    Raises:
        ValueError: it is longer, not exact JSON, or no object.
    """
    if len(text) > limit:
        raise ValueError(f"more than {limit} bytes: store it elsewhere and save where it is")
    value = decode(text, "checkpoint")
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value


class TextCheckpoint:
    """Holds the last checkpoint of an attempt whose handler reads and writes it as text.

    Args:
        attempt: whose.

    Attributes:
        is_known: False: a later one than `last` may exist, and only the operator knows.
    """

    def __init__(self, attempt: AttemptRequest) -> None:
        self._attempt = attempt
        self._encoded = attempt.checkpoint
        self.is_known = attempt.checkpoint_known

    @property
    def last(self) -> bytes:
        """What was saved last, in this attempt or before it, as JSON; b"": nothing."""
        return b"" if self._encoded is None else orjson.dumps(decode_checkpoint(self._encoded))

    def save(self, text: bytes) -> str:
        """Save a JSON object; return why it is refused, or "".

        What is refused changes nothing: the attempt goes on, and the one before it stays the last.
        """
        try:
            encoded = encode_checkpoint(read_checkpoint(text, limit=WRITTEN_BYTES))
        except (TypeError, ValueError) as error:
            self.refuse(str(error))
            return str(error)
        self._encoded, self.is_known = encoded, True
        if self._attempt.on_checkpoint is not None:
            self._attempt.on_checkpoint(encoded)
        return ""

    def refuse(self, reason: str) -> None:
        """Log why something is not saved."""
        log.warning(
            "checkpoint.refused",
            reason=reason,
            hint="save a JSON object of at most 16 KiB; the one before it stays the last",
            **self._attempt.log_fields,
        )
