"""A Task that has ended, as the archive has it, and the completion event that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from taskqueue.contract.cloudevents import decode_envelope
from taskqueue.contract.names import ContractError
from taskqueue.limits import ARCHIVE_EVENT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedTask:
    """A Task that has ended, whether its object still exists or not. Times are in UTC.

    Attributes:
        uid: its identity; there is one row of each.
        namespace: of the Task and its TaskQueue.
        queue: name of the TaskQueue.
        name: of the Task; Tasks may have the same at different times.
        handler: that was asked for; "" if a deleted Task is all that is known.
        phase: Succeeded, Failed or Cancelled.
        reason: as in its status; Deleted: the object was deleted before it had ended.
        message: as in its status.
        labels: of the object when it ended.
        attempts: how many there were.
        history: the last attempts, each with the fields of status.history.
        worker: the pod that ran the last attempt; "" for none.
        created: when the object was created; None: not known.
        started: when the first attempt began; None: there was none.
        completed: when it ended.
        result: what its handler returned, an object; None: nothing, or it is in a store.
        result_ref: what its status says of a result in a store; None: there is none there.
        payload: spec.payload, where the TaskQueue keeps payloads and it could be read.
        submitted_by: who created the object, as far as known; "" if not.
        cancelled_by: who set spec.cancel, as far as known; "" if nobody has.
        retry_of: the Task that this one runs again, as its label says; "" for none.
    """

    uid: str
    namespace: str
    queue: str
    name: str
    handler: str
    phase: str
    reason: str
    message: str
    labels: Mapping[str, str] = field(default_factory=dict)
    attempts: int
    history: Sequence[Mapping[str, Any]] = ()
    worker: str = ""
    created: datetime | None = None
    started: datetime | None = None
    completed: datetime
    result: Mapping[str, Any] | None = field(default=None, repr=False)
    result_ref: Mapping[str, Any] | None = None
    payload: Mapping[str, Any] | None = field(default=None, repr=False)
    submitted_by: str = ""
    cancelled_by: str = ""
    retry_of: str = ""


def read_event(body: bytes, *, namespace: str, queue: str) -> ArchivedTask | None:
    """Read the completion event of a Task of a TaskQueue with an archive.

    Args:
        body: as it came.
        namespace: whose outbox it came from.
        queue: see ``namespace``.

    Returns:
        None: it is the end of a direct message, or was published before the queue had an archive.

    Raises:
        ContractError: it is no event of this TaskQueue.
    """
    try:
        envelope = decode_envelope(body, limit=ARCHIVE_EVENT_BYTES)
        data, (owner, _, name) = envelope["data"], envelope["subject"].partition("/")
        if (owner, envelope["taskqueue"]) != (namespace, queue):
            raise ContractError(f"it is about TaskQueue {owner}/{envelope['taskqueue']}")
        record = data.get("record")
        if record is None:
            return None
        return ArchivedTask(
            uid=_text(data["uid"]),
            namespace=namespace,
            queue=queue,
            name=_text(name),
            handler=_text(record["handler"]),
            phase=_text(data["phase"]),
            reason=_text(data["reason"]),
            message=_text(data["message"]),
            labels={_text(key): _text(value) for key, value in record["labels"].items()},
            attempts=int(data["attempts"]),
            history=tuple(record["history"]),
            worker=_text(data["worker"]),
            created=_time(record.get("creationTime")),
            started=_time(data.get("startTime")),
            completed=_time(data["completionTime"]) or datetime.now(UTC),
            result=data.get("result"),
            result_ref=data.get("resultRef"),
            payload=record.get("payload"),
            submitted_by=_text(record["submittedBy"]),
            cancelled_by=_text(record["cancelledBy"]),
            retry_of=_text(record["retryOf"]),
        )
    except ContractError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"it is no completion event of a Task: {error!r}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)
