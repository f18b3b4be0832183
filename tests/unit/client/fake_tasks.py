"""An API server of Tasks in memory, with the guarantees that the clients rely on.

tests/integration/client checks them on a real one: defaults set at creation, AlreadyExists, the uid
as a precondition, a watch of one name that starts with the content of a cache, 410 for an expired
resource version, DELETED with the last state.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from taskqueue.client.access import ApiConnection
from taskqueue.kubernetes.client import ApiClient, ApiError

NAMESPACE = "shop"

_DEFAULTS = {"payload": {}, "payloadFrom": [], "priority": 0, "concurrencyKey": ""} | {
    "dependsOn": [],
    "suspend": False,
    "cancel": False,
}


class FakeTasks(ApiClient):
    """The server and a client of it; tests change its Tasks and break it."""

    def __init__(self) -> None:
        # Not the base's: there is no connection.
        self.objects: dict[str, dict[str, Any]] = {}
        #: Errors for the next requests, watches included; None lets one pass.
        self.answers: deque[ApiError | None] = deque()
        self.requests: list[tuple[str, str]] = []
        self.watches = 0
        self.watching = 0
        self.closed = 0
        #: Errors for the next watches only.
        self.watch_answers: deque[ApiError | None] = deque()
        #: Number of POSTs that are executed but whose response is lost.
        self.answers_lost = 0
        self._version = 10
        self._uids = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        #: What watches start with instead of the present state: their cache is stale.
        self.cached: dict[str, list[dict[str, Any]]] = {}
        self._changed = asyncio.Condition()
        self._breaks = 0

    def connected(self) -> ApiConnection:
        """Return a connection to it."""
        return ApiConnection(requests=self, watches=self, namespace=NAMESPACE)

    async def connect(self) -> ApiConnection:
        """Return a connection to it, as the clients call it."""
        return self.connected()

    # Called by tests.

    async def set_status(self, name: str, phase: str, **more: Any) -> None:
        """Write a status, as the operator does."""
        task = self.objects[name]
        task["status"] = {"phase": phase, "observedGeneration": 1, **more}
        await self._emit("MODIFIED", task)

    async def send_outline(self, name: str, **status: Any) -> None:
        """Send what can be read of a Task that as a whole cannot."""
        outline = {**self.objects[name], "status": status}
        self._events.append({"type": "MODIFIED", "object": outline, "problem": "too deep"})
        await self._wake()

    async def delete(self, name: str) -> None:
        """Delete a Task."""
        await self._emit("DELETED", self.objects.pop(name))

    async def break_watches(self) -> None:
        """End all watches."""
        self._breaks += 1
        await self._wake()

    async def send_error(self, code: int) -> None:
        """Send an ERROR event to the open watches."""
        status = {"code": code, "reason": "Expired", "message": "too old resource version"}
        self._events.append({"type": "ERROR", "object": status})
        await self._wake()

    async def until_watched(self) -> None:
        """Wait until a watch is open."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.watching > 0)

    # Called by clients.

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        levels: int | None = None,
    ) -> dict[str, Any]:
        self.requests.append((method, path))
        answer = self.answers.popleft() if self.answers else None
        if answer is not None:
            raise answer
        if method == "POST":
            return await self._create(path.split("/")[5], body)
        name = path.split("/")[-1]
        if name not in self.objects:
            raise ApiError(404, "NotFound", f'tasks "{name}" not found')
        task = self.objects[name]
        if method == "PATCH":
            wanted_uid = body.get("metadata", {}).get("uid", task["metadata"]["uid"])
            if wanted_uid != task["metadata"]["uid"]:
                raise ApiError(409, "Conflict", "the UID in the precondition does not match")
            if task["status"]["phase"] in ("Succeeded", "Failed", "Cancelled"):
                raise ApiError(422, "Invalid", "the spec of a finished Task is frozen")
            task["spec"] |= body["spec"]
            await self._emit("MODIFIED", task)
        return copy.deepcopy(task)

    async def watch(
        self, path: str, *, timeout_seconds: int, **params: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.watches += 1
        answer = self.watch_answers.popleft() if self.watch_answers else None
        if answer is not None:
            raise answer
        name = params["fieldSelector"].removeprefix("metadata.name=")
        # The real one makes a streamed list of it with bookmarks, and may refuse that.
        assert params["resourceVersion"] == "0"
        assert "allowWatchBookmarks" not in params
        self.watching += 1
        breaks, seen = self._breaks, len(self._events)
        there = [self.objects[name]] if name in self.objects else []
        try:
            await self._wake()
            for task in self.cached.pop(name, there):
                yield {"type": "ADDED", "object": copy.deepcopy(task)}
            while breaks == self._breaks:
                fresh, seen = self._events[seen:], len(self._events)
                for event in fresh:
                    if event["object"].get("metadata", {}).get("name", name) == name:
                        yield copy.deepcopy(event)
                async with self._changed:
                    if breaks == self._breaks and len(self._events) == seen:
                        await self._changed.wait()
        finally:
            self.watching -= 1

    async def close(self) -> None:
        self.closed += 1

    async def _create(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        if name in self.objects:
            raise ApiError(409, "AlreadyExists", f'tasks "{name}" already exists')
        task = copy.deepcopy(body)
        task["metadata"] |= {"namespace": namespace, "uid": f"uid-{next(self._uids)}"}
        task["spec"] = _DEFAULTS | task["spec"]
        task["status"] = {"phase": "Pending", "observedGeneration": -1}
        self.objects[name] = task
        await self._emit("ADDED", task)
        if self.answers_lost:
            self.answers_lost -= 1
            raise ApiError(0, "Unreachable", "the connection was lost")
        return copy.deepcopy(task)

    async def _emit(self, kind: str, task: dict[str, Any]) -> None:
        self._version += 1
        task["metadata"]["resourceVersion"] = str(self._version)
        self._events.append({"type": kind, "object": copy.deepcopy(task)})
        await self._wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
