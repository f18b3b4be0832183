"""Asks the archive for Tasks that have ended: which, and from where on."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypedDict

import orjson

#: Rows of a page, when nobody says otherwise, and at most.
PAGE_ROWS, MOST_ROWS = 100, 1000


class HistoryOptions(TypedDict, total=False):
    """The conditions of `HistoryFilter`, as arguments of a client."""

    handler: str
    phases: Sequence[str]
    reason: str
    labels: Mapping[str, str]
    since: datetime
    until: datetime
    error_text: str
    payload: Mapping[str | tuple[str, ...], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """Which Tasks are wanted: those for which all that is given holds.

    Attributes:
        namespace: of the Tasks.
        queue: name of their TaskQueue; None: any of the namespace in this database.
        handler: asked for.
        uid: of the one Task that is wanted; None: any.
        phases: Succeeded, Failed, Cancelled; empty: any.
        reason: of the status.
        labels: that the Task had, with these values.
        since: the Task ended then or later; a time with a zone.
        until: it ended before; a time with a zone.
        error_text: is contained in the status's message; letters A to Z may be large or small.
        payload: the value at a path of the payload, such as ``{"customer.id": 7}``; the parts of a
            path are keys or positions in a list. A tuple of parts where keys have dots. Only where
            payloads are kept.

    Raises:
        ValueError: a time without a zone, or a path or value that cannot be looked for.
    """

    namespace: str
    queue: str | None = None
    handler: str | None = None
    uid: str | None = None
    phases: Sequence[str] = ()
    reason: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    error_text: str | None = None
    payload: Mapping[str | tuple[str, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            at = getattr(self, name)
            if at is not None and at.tzinfo is None:
                raise ValueError(f"{name} has no time zone: give one, such as datetime.UTC")
        if isinstance(self.phases, str):
            raise ValueError(f"phases is the string {self.phases!r}: give a list of phases")
        texts = (self.handler, self.uid, self.reason, self.error_text, *self.phases)
        texts += (*self.labels, *self.labels.values())
        if any("\0" in text for text in texts if text is not None):
            raise ValueError("a text has a NUL character, which no text in the archive has")
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the query, by name."""
        try:
            labels = orjson.dumps(dict(self.labels)).decode()
            wanted = [{"path": _parts(at), "value": value} for at, value in self.payload.items()]
            payload = orjson.dumps(wanted).decode()
        except TypeError as error:
            raise ValueError(f"labels or payload has what is not JSON: {error}") from None
        if "\\u0000" in payload:
            raise ValueError("payload: a value has a NUL character: look for another value")
        return {
            "namespace": self.namespace,
            "queue": self.queue,
            "handler": self.handler,
            "uid": self.uid,
            "phases": list(self.phases) or None,
            "reason": self.reason,
            "labels": labels,
            "since": self.since,
            "until": self.until,
            "error_text": self.error_text,
            "payload": payload,
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ends: the next one has what ended before that, or at once with a lower uid."""

    completed: datetime
    uid: str

    def token(self) -> str:
        """Return it as text, opaque to whoever asks for the next page with it."""
        text = f"{self.completed.astimezone(UTC).isoformat()} {self.uid}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def from_token(cls, token: str) -> Place:
        """Read a text of `token`.

        Raises:
            ValueError: it is not one.
        """
        try:
            text = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True).decode()
            at, _, uid = text.partition(" ")
            completed = datetime.fromisoformat(at)
        except ValueError:
            completed, uid = None, ""
        if completed is None or completed.tzinfo is None or not uid or "\0" in uid:
            raise ValueError(f"{token[:100]!r} is not where a page ended: take it from the page")
        return cls(completed, uid)


def _parts(path: str | tuple[str, ...]) -> list[str]:
    parts = path.split(".") if isinstance(path, str) else list(path)
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise ValueError(f"payload: {path!r} is no path: join keys with dots, such as customer.id")
    return parts
