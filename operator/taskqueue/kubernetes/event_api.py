"""Kubernetes Events (events.k8s.io/v1), shown by ``kubectl describe`` and ``kubectl get events``.

Rules of the API server: eventTime, action and reportingController are required; a note has at most
1024 bytes; only the series of an Event can be changed. An Event expires an hour after its last
change.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

from taskqueue.api.common import GROUP, VERSION
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.limits import OBJECT_NAME_LENGTH
from taskqueue.timestamps import to_rfc3339

REPORTING_CONTROLLER = f"{GROUP}/operator"

NORMAL, WARNING = "Normal", "Warning"

#: Limits of the API server: bytes of a note, characters of a reason.
NOTE_BYTES = 1024
REASON_LENGTH = 128
_INSTANCE_LENGTH = 128
_CONFLICT = 409
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regarding:
    """The object an Event is about; ``kubectl describe`` shows only Events with its uid."""

    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSpec:
    """The content of an Event.

    Attributes:
        regarding: the object it is about; the Event is created in its namespace.
        type: `NORMAL` or `WARNING`.
        reason: CamelCase; anything else becomes Unknown.
        action: what the operator did or tried, in CamelCase.
        note: for people; truncated to `NOTE_BYTES`.
        name: of the Event, made once by `event_name`: a create that is retried makes no second one.
    """

    regarding: Regarding
    type: str
    reason: str
    action: str
    note: str
    name: str


def event_name(regarding: Regarding) -> str:
    """Return a unique name for an Event."""
    suffix = uuid.uuid4().hex[:16]
    stem = regarding.name[: OBJECT_NAME_LENGTH - len(suffix) - 1].rstrip(".-")
    return f"{stem}.{suffix}"


def event_body(spec: EventSpec, *, at: float, instance: str) -> dict[str, Any]:
    """Return the Event object to create.

    Args:
        spec: its content.
        at: when it happened, in seconds since the epoch.
        instance: name of the operator's instance.
    """
    regarding = spec.regarding
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": spec.name, "namespace": regarding.namespace},
        "eventTime": to_rfc3339(at, "microseconds"),
        "reportingController": REPORTING_CONTROLLER,
        "reportingInstance": instance[:_INSTANCE_LENGTH],
        "type": spec.type,
        "reason": _reason(spec.reason),
        "action": spec.action,
        "note": _truncate(spec.note),
        "regarding": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": regarding.kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            **({"uid": regarding.uid} if regarding.uid else {}),
        },
    }


class EventWriter:
    """Creates Events and counts their repetitions.

    Args:
        client: of the API server.
        instance: name of this operator's instance, such as its pod.
    """

    def __init__(self, client: ApiClient, *, instance: str) -> None:
        self._client = client
        self._instance = instance

    async def create(self, spec: EventSpec, *, at: float) -> None:
        """Create an Event; one of this name that exists already counts as created.

        Raises:
            ApiError: refused or unreachable.
        """
        body = event_body(spec, at=at, instance=self._instance)
        try:
            await self._client.send("POST", _path(spec.regarding.namespace), body=body)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise

    async def repeat(self, spec: EventSpec, *, count: int, at: float) -> None:
        """Record that an Event has happened ``count`` times, the last time at ``at``.

        Raises:
            ApiError: refused or unreachable; 404 once the Event has expired.
        """
        path = f"{_path(spec.regarding.namespace)}/{spec.name}"
        await self._client.merge(
            path, {"series": {"count": count, "lastObservedTime": to_rfc3339(at, "microseconds")}}
        )


def _path(namespace: str) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"


def _reason(reason: str) -> str:
    """Return ``reason`` if an Event may have it: a handler's error type need not be CamelCase."""
    return reason[:REASON_LENGTH] if _REASON.fullmatch(reason) else "Unknown"


def _truncate(note: str) -> str:
    raw = note.encode()
    if len(raw) <= NOTE_BYTES:
        return note
    ellipsis = "…"
    return raw[: NOTE_BYTES - len(ellipsis.encode())].decode(errors="ignore") + ellipsis
