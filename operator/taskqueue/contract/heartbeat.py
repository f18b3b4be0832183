"""Heartbeats of workers, every few seconds, as CloudEvents.

They register a worker while it lives, and report the progress of its attempts. None of them has to
arrive: they are published without confirms, and expire when nobody reads them in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

from taskqueue.contract import cloudevents
from taskqueue.contract.cloudevents import CloudEvent
from taskqueue.contract.names import ContractError, routing_key
from taskqueue.limits import (
    HANDLER_NAME_LENGTH,
    HEARTBEAT_BYTES,
    OBJECT_NAME_LENGTH,
    PROGRESS_MESSAGE_LENGTH,
)
from taskqueue.model.worker import WorkerState as WorkerState

_TYPE = cloudevents.event_type("worker.heartbeat")
#: Handlers and running attempts read from one heartbeat, at most.
LIST_LIMIT = 2000
#: Most CPUs and slots accepted: they are computed with, and written to a status.
CAPACITY_LIMIT = 100_000
#: What handlers and running attempts may take of `HEARTBEAT_BYTES`.
_HANDLERS_BYTES = HEARTBEAT_BYTES // 4
_RUNNING_BYTES = HEARTBEAT_BYTES * 5 // 8


@dataclass(frozen=True, slots=True)
class RunningAttempt:
    """An attempt of a Task that a worker runs.

    Attributes:
        uid: of the Task.
        token: of the attempt.
        percent: of its progress, 0 to 100; None: not reported.
        message: of its progress; "" when not reported.
        attempt: its number; None: from a worker that does not say.
        epoch: likewise.
    """

    uid: str
    token: str
    percent: int | None = None
    message: str = ""
    attempt: int | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One heartbeat.

    Attributes:
        namespace: of the TaskQueue.
        queue: name of the TaskQueue.
        pod: name of the worker in its events.
        node: of the pod; "" when it is not known.
        cpus: that the worker may use; 0 when it is not known.
        slots: attempts it runs at once.
        handlers: names it has code for.
        running: attempts of Tasks it runs.
        state: what it is doing.
        busy: attempts and direct messages it runs; None: it does not count direct messages.
        is_running_cut: ``running`` does not name all of them; set by `decode`.
    """

    namespace: str
    queue: str
    pod: str
    node: str
    cpus: float
    slots: int
    handlers: tuple[str, ...]
    running: tuple[RunningAttempt, ...]
    state: WorkerState
    busy: int | None = None
    is_running_cut: bool = False

    @property
    def routing_key(self) -> str:
        """The key on the heartbeats exchange."""
        return f"{routing_key(self.namespace, self.queue)}.worker.heartbeat"


def encode(heartbeat: Heartbeat) -> bytes:
    """Return the heartbeat as a structured CloudEvent.

    Lists that are too long for `HEARTBEAT_BYTES` are cut, and marked so.
    """
    handlers, handlers_cut = _fitting(list(heartbeat.handlers), _HANDLERS_BYTES)
    running, running_cut = _fitting(
        [_encode_running(attempt) for attempt in heartbeat.running], _RUNNING_BYTES
    )
    marks = {"handlersCut": handlers_cut, "runningCut": running_cut}
    busy = {} if heartbeat.busy is None else {"busy": heartbeat.busy}
    return cloudevents.encode(
        type=_TYPE,
        source=f"/workers/{heartbeat.pod}",
        subject=f"{heartbeat.namespace}/{heartbeat.queue}",
        queue=heartbeat.queue,
        data={
            "pod": heartbeat.pod,
            "node": heartbeat.node,
            "cpus": heartbeat.cpus,
            "slots": heartbeat.slots,
            "handlers": handlers,
            "running": running,
            "state": heartbeat.state,
            **busy,
            **{name: True for name, is_cut in marks.items() if is_cut},
        },
    )


def decode(body: bytes) -> Heartbeat:
    """Read a heartbeat from the wire.

    Raises:
        ContractError: not JSON, not a heartbeat, or a field is missing or of a wrong type.
    """
    event = CloudEvent.decode(body, limit=HEARTBEAT_BYTES)
    if event.type != _TYPE:
        raise ContractError(f"event type must be {_TYPE}, it is {event.type!r}")
    data = event.data
    try:
        busy, running = data.get("busy"), _list(data, "running")
        return Heartbeat(
            namespace=event.namespace,
            queue=event.name,
            pod=_name(data, "pod"),
            node=str(data.get("node") or "")[:OBJECT_NAME_LENGTH],
            cpus=float(_capacity("cpus", data.get("cpus") or 0)),
            slots=int(_capacity("slots", data["slots"])),
            handlers=tuple(str(name)[:HANDLER_NAME_LENGTH] for name in _list(data, "handlers")),
            running=tuple(_decode_running(attempt) for attempt in running),
            state=WorkerState(data["state"]),
            busy=None if busy is None else int(_capacity("busy", busy)),
            is_running_cut=bool(data.get("runningCut")) or len(running) == LIST_LIMIT,
        )
    except ContractError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ContractError(f"not a heartbeat of the contract: {error!r}") from error


def _fitting(entries: list[Any], limit: int) -> tuple[list[Any], bool]:
    """Return the first entries that have no more bytes of JSON than that, and whether it cut."""
    kept = entries[:LIST_LIMIT]
    size = 0
    for number, entry in enumerate(kept):
        size += len(orjson.dumps(entry)) + 1
        if size > limit:
            return kept[:number], True
    return kept, len(kept) < len(entries)


def _encode_running(attempt: RunningAttempt) -> dict[str, Any]:
    fields: dict[str, Any] = {"uid": attempt.uid, "token": attempt.token}
    if attempt.attempt is not None and attempt.epoch is not None:
        fields |= {"attempt": attempt.attempt, "epoch": attempt.epoch}
    if attempt.percent is not None or attempt.message:
        # A handler's text: whatever it is, the heartbeat must not fail over it.
        message = str(attempt.message)[:PROGRESS_MESSAGE_LENGTH].encode("utf-8", "replace").decode()
        fields["progress"] = {"percent": attempt.percent, "message": message}
    return fields


def _decode_running(fields: Any) -> RunningAttempt:
    progress = fields.get("progress") or {}
    percent = progress.get("percent")
    return RunningAttempt(
        uid=_name(fields, "uid"),
        token=_name(fields, "token"),
        percent=None if percent is None else min(max(int(percent), 0), 100),
        message=str(progress.get("message") or "")[:PROGRESS_MESSAGE_LENGTH],
        attempt=_number(fields, "attempt"),
        epoch=_number(fields, "epoch"),
    )


def _number(fields: Any, field: str) -> int | None:
    number = fields.get(field)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise ContractError(f"heartbeat field running[].{field} must be an integer")
    return number


def _name(fields: Any, field: str) -> str:
    """Return a name as it was sent, or refuse it: cut, it would name something else."""
    name = fields[field]
    if not isinstance(name, str) or not 0 < len(name) <= OBJECT_NAME_LENGTH:
        raise ContractError(
            f"heartbeat field {field} must be a string of 1 to {OBJECT_NAME_LENGTH} characters"
        )
    return name


def _list(data: Any, field: str) -> list[Any]:
    found = data.get(field)
    if found is None:
        return []  # how some languages write an empty list
    if not isinstance(found, list):
        raise ContractError(f"heartbeat field data.{field} must be a list")
    return found[:LIST_LIMIT]


def _capacity(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ContractError(f"heartbeat field data.{field} must be a number, it is {value!r}")
    return min(max(value, 0), CAPACITY_LIMIT)
