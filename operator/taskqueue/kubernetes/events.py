"""Kubernetes Events (events.k8s.io/v1): what ``kubectl describe`` and ``kubectl get events`` show.

What the API server showed when tried: eventTime, action and reportingController are required; a
note has at most 1024 bytes; but for its series nothing of an Event can be changed. An Event is
removed an hour after its last change.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

from taskqueue.api.common import GROUP, VERSION
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.timestamps import to_rfc3339

REPORTING_CONTROLLER = f"{GROUP}/operator"

NORMAL, WARNING = "Normal", "Warning"

#: Longest note, in bytes, and longest reason.
NOTE_BYTES = 1024
REASON_LENGTH = 128
_NAME_LENGTH = 253
_INSTANCE_LENGTH = 128
_CONFLICT = 409
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regarding:
    """The object of ours an Event is about; without its uid ``describe`` does not show it."""

    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSpec:
    """What an Event says.

    Attributes:
        regarding: the object it is about; the Event is made in its namespace.
        type: `NORMAL` or `WARNING`.
        reason: CamelCase; what is not becomes Unknown.
        action: what the operator did or tried, CamelCase.
        note: for people; cut to what an Event takes.
        name: of the Event; made by `event_name`, so that creating it twice makes one.
    """

    regarding: Regarding
    type: str
    reason: str
    action: str
    note: str
    name: str


def event_name(regarding: Regarding) -> str:
    """Return a name no other Event has."""
    suffix = uuid.uuid4().hex[:16]
    stem = regarding.name[: _NAME_LENGTH - len(suffix) - 1].rstrip(".-")
    return f"{stem}.{suffix}"


def event_body(notice: EventSpec, *, at: float, instance: str) -> dict[str, Any]:
    """Return the Event as the API server takes it.

    Args:
        notice: what it says.
        at: when that happened, seconds since the epoch.
        instance: which operator says so.
    """
    regarding = notice.regarding
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": notice.name, "namespace": regarding.namespace},
        "eventTime": to_rfc3339(at, "microseconds"),
        "reportingController": REPORTING_CONTROLLER,
        "reportingInstance": instance[:_INSTANCE_LENGTH],
        "type": notice.type,
        "reason": _reason(notice.reason),
        "action": notice.action,
        "note": _clip(notice.note),
        "regarding": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": regarding.kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            **({"uid": regarding.uid} if regarding.uid else {}),
        },
    }


class EventWriter:
    """Writes Events.

    Args:
        client: for the API server.
        instance: of this operator, such as its pod's name.
    """

    def __init__(self, client: ApiClient, *, instance: str) -> None:
        self._client = client
        self._instance = instance

    async def create(self, notice: EventSpec, *, at: float) -> None:
        """Write a new Event; one of the name that is there already is taken for it.

        Raises:
            ApiError: refused or unreachable.
        """
        body = event_body(notice, at=at, instance=self._instance)
        try:
            await self._client.send("POST", _path(notice.regarding.namespace), body=body)
        except ApiError as problem:
            if problem.status != _CONFLICT:
                raise

    async def repeat(self, notice: EventSpec, *, count: int, at: float) -> None:
        """Say of an Event that it has happened ``count`` times, the last time at ``at``.

        Raises:
            ApiError: refused or unreachable; 404 once it has been removed for its age.
        """
        path = f"{_path(notice.regarding.namespace)}/{notice.name}"
        await self._client.merge(
            path, {"series": {"count": count, "lastObservedTime": to_rfc3339(at, "microseconds")}}
        )


def _path(namespace: str) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"


def _reason(reason: str) -> str:
    """Return what is a reason of an Event; an error type of a handler need not be one."""
    return reason[:REASON_LENGTH] if _REASON.fullmatch(reason) else "Unknown"


def _clip(note: str) -> str:
    raw = note.encode()
    if len(raw) <= NOTE_BYTES:
        return note
    ellipsis = "…"
    return raw[: NOTE_BYTES - len(ellipsis.encode())].decode(errors="ignore") + ellipsis
