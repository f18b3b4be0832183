"""Stands in for the API server: HTTP on the loopback address, lists, one watch of Tasks, patches.

Every object has a uid, a generation and a resource version. A list is empty unless an object was
put there; a watch shows what is created after it began. The JSON patch of a Task's status is
applied as the real one is: its ``test`` of the uid first. Nothing is validated.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web
from kubernetes.aio.client import Configuration

from taskqueue.kubernetes.client import TABLE, ApiAccess
from taskqueue.kubernetes.task_codec import TASKS_PATH
from tests.unit.kubernetes.fake_api import as_table

#: Resources whose lists are answered.
_LISTED = ("deployments", "events", "pods", "replicasets", "taskqueues", "tasks")


class ApiServer:
    """The objects by path, and who watches Tasks."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.access = ApiAccess(configuration=Configuration(), ssl_context=None)
        #: Set once a watch of Tasks has begun.
        self.watched = asyncio.Event()
        self._versions = itertools.count(100)
        self._watches: list[web.StreamResponse] = []
        self._closing = asyncio.Event()

    def put(self, path: str, raw: dict[str, Any]) -> dict[str, Any]:
        """Store an object as the API server would after its creation; no watch shows it."""
        metadata = {
            "uid": f"uid-{raw['metadata']['name']}",
            "generation": 1,
            "resourceVersion": str(next(self._versions)),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **raw["metadata"],
        }
        self.objects[path] = {**raw, "metadata": metadata}
        return self.objects[path]

    async def create_task(
        self, path: str, raw: dict[str, Any], *, before_line: Callable[[], None]
    ) -> None:
        """Create a Task, and show it to the watch.

        Args:
            path: of the object.
            raw: the manifest.
            before_line: called right before the line of the watch is sent.
        """
        status = {"phase": "Pending", "observedGeneration": -1}
        stored = self.put(path, {**raw, "status": status})
        line = orjson.dumps({"type": "ADDED", "object": stored}) + b"\n"
        before_line()
        for watch in self._watches:
            await watch.write(line)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        if request.path in self.objects:
            return web.json_response(self.objects[request.path])
        if request.path.rpartition("/")[2] in _LISTED:
            kind = request.path.rpartition("/")[2]
            items = [raw for path, raw in self.objects.items() if f"/{kind}/" in path]
            if request.headers["Accept"] == TABLE:
                return web.json_response(as_table([]))  # of finished Tasks: there are none
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
        return web.json_response({"reason": "NotFound", "message": request.path}, status=404)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if request.path == TASKS_PATH:
            self._watches.append(response)
            self.watched.set()
        await self._closing.wait()
        return response

    async def _patch(self, request: web.Request) -> web.Response:
        path = request.path.removesuffix("/status")
        stored = self.objects.get(path)
        if stored is None:  # server-side apply creates
            body = {"metadata": {}, **orjson.loads(await request.read())}
            body["metadata"].setdefault("name", path.rpartition("/")[2])
            return web.json_response(self.put(path, body), status=201)
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        if request.content_type == "application/json-patch+json":
            test, change = orjson.loads(await request.read())
            if test["value"] != stored["metadata"]["uid"]:
                return web.json_response({"reason": "Invalid", "message": "uid"}, status=422)
            stored["status"] = change["value"]
        return web.json_response(stored)

    async def _post(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        return web.json_response(
            self.put(f"{request.path}/{body['metadata']['name']}", body), status=201
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ApiServer]:
        """Serve on a free port of the loopback address."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        app.router.add_patch("/{path:.*}", self._patch)
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.access.configuration.host = f"http://{host}:{port}"
        try:
            yield self
        finally:
            self._closing.set()
            await runner.cleanup()
