"""A `MemoryApi` over HTTP on this machine, under the paths of Kubernetes's API.

So the command line (``--dev``) and the client library (``TASKQUEUE_DEV``) need no second way to
ask. Requests that a web page may have caused, and those by another name than the local one, are
refused: a page that somebody has open must not create Tasks here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from taskqueue.api.common import API_VERSION, TASKQUEUE_PLURAL
from taskqueue.dev.memory_api import CONFIG_MAPS, PLURALS, Change, MemoryApi, Object
from taskqueue.exact_json import decode
from taskqueue.kubernetes.client import ApiError
from taskqueue.model.queue import QueueKey

HOST = "127.0.0.1"

#: Of a request, in bytes.
_BODY_BYTES = 2 * 1024 * 1024

_NAMES = ("127.0.0.1", "localhost", "[::1]")


def make_app(api: MemoryApi, queue_status: Callable[[QueueKey], Object]) -> web.Application:
    """Return the application.

    Args:
        api: the objects.
        queue_status: returns what is to be seen as the status of a TaskQueue now.
    """
    return _Server(api, queue_status).app()


class _Server:
    def __init__(self, api: MemoryApi, queue_status: Callable[[QueueKey], Object]) -> None:
        self._api = api
        self._queue_status = queue_status

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_answered], client_max_size=_BODY_BYTES)
        for root, plurals in (
            (f"/apis/{API_VERSION}", [one for one in PLURALS.values() if one != CONFIG_MAPS]),
            ("/api/v1", [CONFIG_MAPS]),
        ):
            kind = f"{root}/{{plural:{'|'.join(plurals)}}}"
            in_namespace = f"{root}/namespaces/{{namespace}}/{{plural:{'|'.join(plurals)}}}"
            app.router.add_get(kind, self._list)
            app.router.add_get(in_namespace, self._list)
            app.router.add_post(in_namespace, self._create)
            app.router.add_get(f"{in_namespace}/{{name}}", self._get)
            app.router.add_patch(f"{in_namespace}/{{name}}", self._patch)
            app.router.add_delete(f"{in_namespace}/{{name}}", self._delete)
        return app

    async def _list(self, request: web.Request) -> web.StreamResponse:
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace")
        wanted = _selector(request.query.get("fieldSelector", ""))
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, plural, namespace, wanted)
        found = [self._shown(plural, one) for one in self._api.objects(plural, namespace)]
        items = [one for one in found if _matches(one, wanted)]
        metadata = {"resourceVersion": str(self._api.version)}
        return _json({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})

    async def _watch(
        self,
        request: web.Request,
        plural: str,
        namespace: str | None,
        wanted: Mapping[str, str],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        changes: asyncio.Queue[Change] = asyncio.Queue()
        for one in self._api.objects(plural, namespace):
            changes.put_nowait(("ADDED", plural, one))
        self._api.listeners.append(changes.put_nowait)
        seconds = float(request.query.get("timeoutSeconds", "300"))
        try:
            async with asyncio.timeout(seconds):
                while True:
                    event, kind, one = await changes.get()
                    place = one["metadata"]["namespace"]
                    if (
                        kind != plural
                        or namespace not in (None, place)
                        or not _matches(one, wanted)
                    ):
                        continue
                    line = orjson.dumps({"type": event, "object": self._shown(plural, one)})
                    await response.write(line + b"\n")
        except (TimeoutError, ConnectionError):
            return response
        finally:
            self._api.listeners.remove(changes.put_nowait)

    async def _create(self, request: web.Request) -> web.Response:
        body = await _body(request)
        info = request.match_info
        return _json(self._api.create(info["plural"], info["namespace"], body), status=201)

    async def _get(self, request: web.Request) -> web.Response:
        info = request.match_info
        found = self._api.get(info["plural"], info["namespace"], info["name"])
        return _json(self._shown(info["plural"], found))

    async def _patch(self, request: web.Request) -> web.Response:
        body = await _body(request)
        info = request.match_info
        return _json(self._api.merge(info["plural"], info["namespace"], info["name"], body))

    async def _delete(self, request: web.Request) -> web.Response:
        info = request.match_info
        return _json(self._api.delete(info["plural"], info["namespace"], info["name"]))

    def _shown(self, plural: str, one: Object) -> Object:
        if plural != TASKQUEUE_PLURAL:
            return one
        metadata = one["metadata"]
        return {**one, "status": self._queue_status((metadata["namespace"], metadata["name"]))}


@web.middleware
async def _answered(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Refuse what a web page has caused, and answer errors as the API server does."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    name = request.host.rpartition(":")[0] if ":" in request.host else request.host
    if site != "none" or "Origin" in request.headers or name not in _NAMES:
        problem = "taskqueue dev answers programs on this machine, not web pages"
        return _status(ApiError(403, "Forbidden", problem))
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except ApiError as error:
        return _status(error)
    except web.HTTPException as error:
        return _status(ApiError(error.status, error.reason.replace(" ", ""), error.text or ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _status(ApiError(400, "BadRequest", f"the request cannot be read: {error!r}"))


async def _body(request: web.Request) -> Object:
    """Return the JSON object of a request.

    Raises:
        ApiError: 400: it has none.
    """
    try:
        body = decode(await request.read())
    except ValueError as error:
        raise ApiError(400, "BadRequest", f"the body cannot be read as JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "BadRequest", "the body is not a JSON object")
    return body


def _json(value: Object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _status(error: ApiError) -> web.Response:
    return _json(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": error.status,
            "reason": error.reason,
            "message": error.message,
        },
        status=error.status,
    )


def _selector(text: str) -> Mapping[str, str]:
    """Read a field selector, of which only equality is known."""
    return dict(one.split("=", 1) for one in text.split(",") if one)


def _matches(one: Object, wanted: Mapping[str, str]) -> bool:
    for path, expected in wanted.items():
        value: Any = one
        for field in path.split("."):
            value = (value or {}).get(field)
        if value != expected:
            return False
    return True
