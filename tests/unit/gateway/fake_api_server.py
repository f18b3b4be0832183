"""An API server of taskqueue.dev over HTTP, with the guarantees that the gateway relies on.

tests/integration/gateway runs the access matrix against a real one, too: 401 for tokens it does
not know, 403 with its words, reviews of the caller's own rights, the schemas of the CRDs,
AlreadyExists, pages, watches that begin with the present state.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson
from aiohttp import web

from taskqueue.api.crds import DEFINITIONS, custom_resource_definition

Object = dict[str, Any]

_TASK_STATUS = {"phase": "Pending", "observedGeneration": -1}
_CLUSTER = "/apis/taskqueue.dev/v1alpha1/namespaces/{namespace}/{plural}"


def _schemas() -> dict[str, Any]:
    found = {}
    for definition in DEFINITIONS:
        crd = custom_resource_definition(definition)
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        spec = schema["properties"]["spec"]
        found[crd["spec"]["names"]["plural"]] = jsonschema_rs.validator_for(spec)
    return found


class FakeApiServer:
    """The server; tests give users rights, and change its objects.

    Attributes:
        rights: verbs on resources by token and namespace, such as ("get", "tasks"); "*" is all.
        objects: by plural, namespace and name.
        requests: method, path and token of each.
    """

    def __init__(self) -> None:
        self.rights: dict[str, dict[str, set[tuple[str, str]]]] = {}
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.secrets: dict[tuple[str, str], dict[str, str]] = {}
        self.app = web.Application(client_max_size=4 * 1024 * 1024)
        self.app.router.add_route("*", _CLUSTER, self._collection)
        self.app.router.add_route("*", _CLUSTER + "/{name}", self._object)
        self.app.router.add_post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review
        )
        self._schemas = _schemas()
        self._version = itertools.count(10)
        self._uids = itertools.count(1)
        self._events: list[tuple[str, Object]] = []
        self._changed = asyncio.Condition()

    # Called by tests, in the server's loop.

    def allow(self, token: str, namespace: str, *rights: tuple[str, str]) -> None:
        """Give a user rights."""
        self.rights.setdefault(token, {}).setdefault(namespace, set()).update(rights)

    async def put(self, plural: str, raw: Object) -> Object:
        """Write an object."""
        metadata = raw["metadata"]
        key = (plural, metadata["namespace"], metadata["name"])
        kind = "MODIFIED" if key in self.objects else "ADDED"
        metadata.setdefault("uid", f"00000000-0000-0000-0000-{next(self._uids):012}")
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        metadata["resourceVersion"] = str(next(self._version))
        self.objects[key] = raw
        await self._emit(kind, raw)
        return copy.deepcopy(raw)

    async def set_status(self, namespace: str, name: str, **status: Any) -> None:
        """Write the status of a Task."""
        task = copy.deepcopy(self.objects["tasks", namespace, name])
        await self.put("tasks", {**task, "status": {"observedGeneration": 1, **status}})

    async def remove(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object."""
        await self._emit("DELETED", self.objects.pop((plural, namespace, name)))

    async def _emit(self, kind: str, raw: Object) -> None:
        self._events.append((kind, copy.deepcopy(raw)))
        async with self._changed:
            self._changed.notify_all()

    # Requests.

    def _token(self, request: web.Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.requests.append((request.method, request.path, token))
        if token not in self.rights:
            raise _status(web.HTTPUnauthorized, "Unauthorized", "Unauthorized")
        return token

    def _may(self, token: str, namespace: str, verb: str, resource: str) -> bool:
        granted = self.rights[token].get(namespace, set())
        return bool({("*", "*"), (verb, resource)} & granted)

    def _check(self, request: web.Request, verb: str) -> None:
        token, plural = self._token(request), request.match_info["plural"]
        namespace = request.match_info["namespace"]
        if not self._may(token, namespace, verb, plural):
            name = request.match_info.get("name")
            named = f' "{name}"' if name else ""
            raise _status(
                web.HTTPForbidden,
                "Forbidden",
                f'{plural}.taskqueue.dev{named} is forbidden: User "{token}" cannot {verb} '
                f'resource "{plural}" in API group "taskqueue.dev" in the namespace '
                f'"{namespace}"',
            )

    async def _review(self, request: web.Request) -> web.Response:
        token = self._token(request)
        asked = (await _read(request))["spec"]["resourceAttributes"]
        resource = asked["resource"]
        if asked["subresource"]:
            resource += f"/{asked['subresource']}"
        allowed = self._may(token, asked["namespace"], asked["verb"], resource)
        return web.json_response({"status": {"allowed": allowed}}, status=201)

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self._check(request, "create")
            return await self._create(request)
        if request.query.get("watch"):
            self._check(request, "watch")
            return await self._watch(request)
        self._check(request, "list")
        return self._list(request)

    async def _create(self, request: web.Request) -> web.Response:
        plural, namespace = request.match_info["plural"], request.match_info["namespace"]
        raw = await _read(request)
        metadata = raw["metadata"]
        if "name" not in metadata:
            metadata["name"] = f"{metadata['generateName']}{next(self._uids):05}"
        if (plural, namespace, metadata["name"]) in self.objects:
            raise _status(
                web.HTTPConflict,
                "AlreadyExists",
                f'{plural}.taskqueue.dev "{metadata["name"]}" already exists',
            )
        if not self._schemas[plural].is_valid(raw["spec"]):
            first = next(iter(self._schemas[plural].iter_errors(raw["spec"])))
            raise _status(web.HTTPUnprocessableEntity, "Invalid", f"spec: {first.message}")
        metadata["namespace"] = namespace
        raw["status"] = dict(_TASK_STATUS)
        return web.json_response(await self.put(plural, raw), status=201)

    def _list(self, request: web.Request) -> web.Response:
        plural, namespace = request.match_info["plural"], request.match_info["namespace"]
        found = [
            raw
            for (kind, where, _), raw in sorted(self.objects.items())
            if (kind, where) == (plural, namespace) and _selected(raw, request.query)
        ]
        token = request.query.get("continue", "0")
        if not token.isdecimal():
            raise _status(web.HTTPBadRequest, "BadRequest", "continue key is not valid")
        start, limit = int(token), int(request.query["limit"])
        metadata = {"continue": str(start + limit)} if len(found) > start + limit else {}
        return web.json_response({"metadata": metadata, "items": found[start : start + limit]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        name = request.query["fieldSelector"].removeprefix("metadata.name=")
        key = (request.match_info["plural"], request.match_info["namespace"], name)
        response = web.StreamResponse()
        await response.prepare(request)
        seen = len(self._events)
        if key in self.objects:
            await _send(response, "ADDED", self.objects[key])
        while True:
            fresh, seen = self._events[seen:], len(self._events)
            for kind, raw in fresh:
                if (raw["metadata"]["namespace"], raw["metadata"]["name"]) == key[1:]:
                    await _send(response, kind, raw)
            async with self._changed:
                if len(self._events) == seen:
                    await self._changed.wait()

    async def _object(self, request: web.Request) -> web.Response:
        method = request.method
        self._check(request, {"GET": "get", "PATCH": "patch", "DELETE": "delete"}[method])
        plural, namespace, name = (
            request.match_info[each] for each in ("plural", "namespace", "name")
        )
        raw = self.objects.get((plural, namespace, name))
        if raw is None:
            raise _status(
                web.HTTPNotFound, "NotFound", f'{plural}.taskqueue.dev "{name}" not found'
            )
        if method == "DELETE":
            await self.remove(plural, namespace, name)
            return web.json_response({"status": "Success"})
        if method == "PATCH":
            phase = (raw.get("status") or {}).get("phase")
            if plural == "tasks" and phase in ("Succeeded", "Failed", "Cancelled"):
                message = "the spec of a finished Task is frozen"
                raise _status(web.HTTPUnprocessableEntity, "Invalid", message)
            changed = copy.deepcopy(raw)
            changed["spec"] |= (await _read(request))["spec"]
            raw = await self.put(plural, changed)
        return web.json_response(raw)


def _selected(raw: Object, query: Mapping[str, str]) -> bool:
    fields = {
        "spec.queue": raw["spec"].get("queue"),
        "status.phase": (raw.get("status") or {}).get("phase"),
    }
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        name, _, value = part.partition("=")
        if (fields[name.removesuffix("!")] == value) is name.endswith("!"):
            return False
    labels = raw["metadata"].get("labels", {})
    pairs = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    for name, equals, value in pairs:
        if not name or not equals:
            raise _status(web.HTTPBadRequest, "BadRequest", "unable to parse requirement")
        if labels.get(name) != value:
            return False
    return True


async def _read(request: web.Request) -> Object:
    found: Object = orjson.loads(await request.read())
    return found


async def _send(response: web.StreamResponse, kind: str, raw: Object) -> None:
    await response.write(orjson.dumps({"type": kind, "object": raw}) + b"\n")


def _status(kind: type[web.HTTPException], reason: str, message: str) -> web.HTTPException:
    body = {"kind": "Status", "reason": reason, "message": message}
    return kind(text=orjson.dumps(body).decode(), content_type="application/json")
