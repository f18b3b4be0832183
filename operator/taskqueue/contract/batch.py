"""Several events in one message: CloudEvents in JSON batch format, all of one routing key.

A batch is a list of events as `taskqueue.contract.outcome` writes them. `split` gives back each as
it was written, byte for byte: one that cannot be read is parked alone, and the others count.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskqueue.contract.names import ContractError
from taskqueue.exact_json import split_list
from taskqueue.limits import BATCH_BYTES, BATCH_EVENTS

CONTENT_TYPE = "application/cloudevents-batch+json"


def join(events: Sequence[bytes]) -> bytes:
    """Return encoded events as one batch; check the limits before."""
    return b"[" + b",".join(events) + b"]"


def joined_bytes(events: int, event_bytes: int) -> int:
    """Return the size of a batch of so many events that have so many bytes together."""
    return event_bytes + events + 1


def split(body: bytes) -> list[bytes]:
    """Return the events of a batch as they were written; whether they are events is not checked.

    Raises:
        ContractError: it is above a limit, or not a list in JSON.
    """
    if len(body) > BATCH_BYTES:
        raise ContractError(f"a batch has {len(body)} bytes, the limit is {BATCH_BYTES}")
    try:
        events = split_list(body)
    except ValueError as error:
        raise ContractError(f"a batch must be a list of events in JSON: {error}") from None
    if not 0 < len(events) <= BATCH_EVENTS:
        raise ContractError(f"a batch has {len(events)} events, it must have 1 to {BATCH_EVENTS}")
    return events
