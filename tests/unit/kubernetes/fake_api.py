"""A minimal API server, used over real HTTP by the real client.

It gives the guarantees that the informer and the status updater rely on: pages, of objects or of
their metadata, a watch from a resource version, 410 for an expired one, and any response to a PATCH
that a test asks for. `as_table` is how it shows Tasks as rows.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from taskqueue.api.printer_columns import TASK_COLUMNS
from taskqueue.kubernetes.client import METADATA_LIST, ApiAccess, ApiClient


def make(name: str, uid: str | None = None, version: str = "1", **more: Any) -> dict[str, Any]:
    """Return an object in namespace ns."""
    return {
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": version,
        },
        **more,
    }


def as_table(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return Tasks as the API server does in a Table, with their metadata."""
    return {
        "kind": "Table",
        "metadata": {"resourceVersion": "1"},
        "columnDefinitions": [{"name": "Name"}, *({"name": one.name} for one in TASK_COLUMNS)],
        "rows": [{"cells": _cells(raw), "object": {"metadata": raw["metadata"]}} for raw in tasks],
    }


def _cells(raw: dict[str, Any]) -> list[Any]:
    cells = [raw["metadata"]["name"]]
    for column in TASK_COLUMNS:
        value: Any = raw
        for field_name in column.path.split(".")[1:]:
            value = (value or {}).get(field_name)
        cells.append("5m" if value is not None and column.type == "date" else value)
    return cells


@dataclass
class FakeApi:
    """The server's state, which tests change and read."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 10
    forgotten_below: int = 0
    lists: int = 0
    patches: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    #: What the PATCHes asked to be answered with.
    accepted: list[str] = field(default_factory=list)
    #: Responses to the next PATCHes, as (status, headers); 200 when empty.
    answers: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    #: Sent instead of an object's spec, by name: JSON that the parser refuses.
    raw: dict[str, bytes] = field(default_factory=dict)
    #: Sent as the managed fields of an object, by name.
    managed: dict[str, bytes] = field(default_factory=dict)
    #: Sent instead of the response to the next PATCH.
    answer_text: bytes = b""
    #: How many of the next watches get no line, as over a connection that is silently dead.
    silent_watches: int = 0
    #: Watches that are not short are behind: what is emitted meanwhile does not come.
    stalled: bool = False
    #: Bookmarks are as old as the last event, whatever was written elsewhere since.
    is_without_progress: bool = False
    #: PATCHes wait until it is set, so that a test can see those in flight.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: int = 0
    most_under_way: int = 0
    _events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _breaks: int = 0

    async def emit(self, kind: str, obj: dict[str, Any]) -> None:
        """Change an object and send an event to the watches."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            self.objects.pop(obj["metadata"]["name"], None)
        elif kind != "BOOKMARK":
            self.objects[obj["metadata"]["name"]] = obj
        self._events.append((self.version, {"type": kind, "object": obj}))
        async with self._changed:
            self._changed.notify_all()

    async def break_watches(self) -> None:
        """End every watch, as a server that restarts does."""
        self._breaks += 1
        async with self._changed:
            self._changed.notify_all()

    async def _list_or_watch(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        self.lists += 1
        limit, start = int(request.query["limit"]), int(request.query.get("continue", "0"))
        items = sorted(self.objects.values(), key=lambda obj: str(obj["metadata"]["name"]))
        page = items[start : start + limit]
        more = str(start + limit) if start + limit < len(items) else ""
        # As an API server does, the items before the metadata, and no spaces.
        as_metadata = request.headers["Accept"] == METADATA_LIST
        items_json = b",".join(self._wire(item, as_metadata=as_metadata) for item in page)
        metadata = json.dumps(
            {"continue": more, "resourceVersion": str(self.version)}, separators=(",", ":")
        )
        body = b'{"items":[' + items_json + b'],"metadata":' + metadata.encode() + b"}"
        return web.Response(body=body, content_type="application/json")

    def _wire(self, item: dict[str, Any], *, as_metadata: bool = False) -> bytes:
        name = item["metadata"]["name"]
        metadata = json.dumps(item["metadata"], separators=(",", ":")).encode()
        if name in self.managed:
            metadata = b'{"managedFields":' + self.managed[name] + b"," + metadata[1:]
        rest = {key: value for key, value in item.items() if key not in ("metadata", "spec")}
        text = b'{"metadata":' + metadata
        if as_metadata:
            return text + b"}"
        if name in self.raw:
            text += b',"spec":' + self.raw[name]
        elif "spec" in item:
            rest["spec"] = item["spec"]
        more = json.dumps(rest, separators=(",", ":")).encode()
        return text + (b"," + more[1:] if rest else b"}")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        seen = int(request.query["resourceVersion"])
        if seen < self.forgotten_below:
            return web.json_response({"reason": "Expired", "message": "too old"}, status=410)
        response = web.StreamResponse()
        await response.prepare(request)
        if self.silent_watches:
            self.silent_watches -= 1
            await asyncio.Event().wait()
        breaks = self._breaks
        is_short = int(request.query["timeoutSeconds"]) <= 5
        while breaks == self._breaks:
            for version, event in self._events:
                if version > seen and (is_short or not self.stalled):
                    seen = version
                    kind = json.dumps(event["type"]).encode()
                    wire = self._wire(event["object"])
                    await response.write(b'{"type":' + kind + b',"object":' + wire + b"}\n")
            if is_short:  # two seconds before its end a watch gets a bookmark
                version = seen if self.is_without_progress else self.version
                bookmark = {"metadata": {"resourceVersion": str(version)}}
                line = json.dumps({"type": "BOOKMARK", "object": bookmark})
                await response.write(line.encode() + b"\n")
                break
            async with self._changed:
                if breaks == self._breaks and (self.stalled or self.version <= seen):
                    await self._changed.wait()
        return response

    async def _patch(self, request: web.Request) -> web.Response:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            body = await request.json()
            await self.gate.wait()
            self.patches.append((request.path, body))
            self.accepted.append(request.headers["Accept"])
            if self.answers:
                status, headers = self.answers.popleft()
                return web.json_response(
                    {"reason": "Test", "message": "as asked"}, status=status, headers=headers
                )
            if self.answer_text:
                text, self.answer_text = self.answer_text, b""
                return web.Response(body=text, content_type="application/json")
            return web.json_response(body)
        finally:
            self.under_way -= 1


@asynccontextmanager
async def serve(
    api: FakeApi, *, max_connections: int = 8, may_write: Callable[[], bool] = lambda: True
) -> AsyncIterator[ApiClient]:
    """Serve on the loopback address and yield a client of it."""
    app = web.Application()
    app.router.add_get("/things", api._list_or_watch)
    app.router.add_patch("/{path:.*}", api._patch)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    configuration = Configuration()
    configuration.host = f"http://{host}:{port}"
    client = ApiClient(
        ApiAccess(configuration=configuration, ssl_context=None),
        max_connections=max_connections,
        may_write=may_write,
    )
    try:
        yield client
    finally:
        await client.close()
        await api.break_watches()
        await runner.cleanup()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most 10 s."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (conditions of any kind, not events)
            await asyncio.sleep(0.005)
