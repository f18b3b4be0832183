"""Records the last state of each Task of a namespace, independently of the operator's code.

It shares no code with operator/taskqueue. What the archive should have of a Task follows from the
last state that the API server showed: an end as its status says, or, if it was deleted before it
had ended, just that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests

from tests.e2e.api import TASKQUEUE_API, Api, Body, Refused

FINISHED = frozenset({"Succeeded", "Failed", "Cancelled"})
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Seen:
    """The last state of a Task."""

    body: Body
    deleted: bool

    @property
    def ended(self) -> bool:
        """Whether it had a final status."""
        return (self.body.get("status") or {}).get("phase") in FINISHED

    def row(self) -> dict[str, Any]:
        """Return what the archive should have of it, with times as the API server writes them."""
        metadata, spec = self.body["metadata"], self.body["spec"]
        row = {
            "uid": metadata["uid"],
            "namespace": metadata["namespace"],
            "queue": spec["queue"],
            "name": metadata["name"],
            "handler": spec["handler"],
            "labels": metadata.get("labels", {}),
            "created": metadata["creationTimestamp"],
        }
        status: Mapping[str, Any] = self.body.get("status") or {}
        if not self.ended:
            return row | {"phase": "Cancelled", "reason": "Deleted"}
        return row | {
            "phase": status["phase"],
            "reason": status.get("reason", ""),
            "message": status.get("message", ""),
            "attempts": status.get("attempts", 0),
            "history": status.get("history", []),
            "worker": status.get("worker", ""),
            "started": status.get("startTime"),
            "completed": status["completionTime"],
            "result": status.get("result"),
        }


class TaskRecord:
    """Watches from its beginning to `close`.

    Raises, when asked: the watch was interrupted for longer than the API server remembers.
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"{TASKQUEUE_API}/namespaces/{namespace}/tasks"
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}
        self._problem = ""
        self._closed = threading.Event()
        self._version = api.get(self._path, limit="1")["metadata"]["resourceVersion"]
        threading.Thread(target=self._run, name="record of Tasks", daemon=True).start()

    def seen(self) -> dict[str, Seen]:
        """Return the last state of each Task by uid."""
        assert not self._problem, self._problem
        with self._lock:
            return dict(self._seen)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set() and not self._problem:
            with suppress(requests.RequestException, Refused, ValueError):
                for event in self._api.watch(self._path, self._version):
                    if self._closed.is_set():
                        return
                    self._record(event)
            time.sleep(_PAUSE_SECONDS)

    def _record(self, event: Body) -> None:
        if event["type"] == "ERROR":
            self._problem = f"the watch of Tasks cannot go on: {event['object']}"
            raise ValueError(self._problem)
        body = event["object"]
        self._version = body["metadata"]["resourceVersion"]
        with self._lock:
            self._seen[body["metadata"]["uid"]] = Seen(body, event["type"] == "DELETED")
