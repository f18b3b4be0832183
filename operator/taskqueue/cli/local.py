"""Asks a running `taskqueue dev`, as `kubectl.Kubectl` asks an API server; see there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.kubectl import Object, read_json
from taskqueue.defaults import DEV_VARIABLE
from taskqueue.limits import DEV_PORT

DEFAULT_URL = f"http://127.0.0.1:{DEV_PORT}"

_SECONDS = 15.0
_GROUP = "/apis/taskqueue.dev/v1alpha1"


class LocalApi:
    """The API of `taskqueue dev`.

    Args:
        url: where it listens.
        namespace: of objects; None: of all.
    """

    def __init__(self, url: str, namespace: str | None) -> None:
        self._url = url.rstrip("/")
        self._namespace = namespace

    def objects(self, kind: str, *names: str, arguments: Sequence[str] = ()) -> list[Object]:
        """Return objects of a kind: the named ones, or all."""
        if names:
            return [self._json("GET", self._path(kind, name)) for name in names]
        found = [one for one in self._list(kind) if _matches(one, arguments)]
        return found

    def object(self, kind: str, name: str, namespace: str) -> Object | None:
        """Return one object; None: it does not exist."""
        try:
            return self._json("GET", self._path(kind, name, namespace))
        except _NotFound:
            return None

    def create(self, body: Object) -> Object:
        """Create an object and return it."""
        kind = {"Task": "tasks", "TaskQueue": "taskqueues"}[body["kind"]]
        namespace = body["metadata"].get("namespace") or self._namespace or "default"
        return self._json("POST", f"{_GROUP}/namespaces/{quote(namespace)}/{kind}", body)

    def patch(self, kind: str, one: Object, change: Object) -> None:
        """Change an object by a JSON merge patch, unless it is another one of the same name."""
        metadata = one["metadata"]
        own = {**change.get("metadata", {}), "uid": metadata["uid"]}
        body = {**change, "metadata": own}
        self._json("PATCH", self._path(kind, metadata["name"], metadata["namespace"]), body)

    def watch(
        self, kind: str, name: str, namespace: str, *, seconds: float | None = None
    ) -> Iterator[Object]:
        """Yield an object as it is now, and after each change, until the watch ends."""
        query = {"watch": "1", "fieldSelector": f"metadata.name={name}"}
        query["timeoutSeconds"] = f"{86_400 if seconds is None else seconds:g}"
        path = f"{_GROUP}/namespaces/{quote(namespace)}/{_plural(kind)}?{urlencode(query)}"
        with self._open("GET", path, None, None) as answer:
            for line in answer:
                event = read_json(line.decode())
                if event["type"] == "DELETED":
                    return
                yield event["object"]

    def logs(self, arguments: Sequence[str], namespace: str) -> Iterator[str]:
        """There are none: handlers log to the terminal of `taskqueue dev`."""
        raise CommandFailed("handlers log to the terminal where taskqueue dev runs: look there")

    def each(self, run: Callable[[Object], None], objects: Sequence[Object]) -> list[str]:
        """Do something for each of many objects, and return what was said where it failed."""
        said = []
        for one in objects:
            try:
                run(one)
            except CommandFailed as error:
                said.append(f"{one['metadata']['name']}: {error}")
        return said

    def _list(self, kind: str) -> list[Object]:
        place = "" if self._namespace is None else f"/namespaces/{quote(self._namespace)}"
        found: list[Object] = self._json("GET", f"{_GROUP}{place}/{_plural(kind)}")["items"]
        return found

    def _path(self, kind: str, name: str, namespace: str | None = None) -> str:
        place = quote(namespace or self._namespace or "default")
        return f"{_GROUP}/namespaces/{place}/{_plural(kind)}/{quote(name, safe='')}"

    def _json(self, method: str, path: str, body: Object | None = None) -> Object:
        with self._open(method, path, body, _SECONDS) as answer:
            return read_json(answer.read().decode())

    def _open(self, method: str, path: str, body: Object | None, seconds: float | None) -> Any:
        import urllib.error  # not for a help text: it takes as long as all the rest
        import urllib.request
        from http.client import HTTPException

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)  # noqa: S310
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            return opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            said = read_json(error.read().decode("utf-8", "replace")).get("message", str(error))
            raise (_NotFound if error.code == 404 else CommandFailed)(said) from None
        except (OSError, HTTPException) as error:
            raise CommandFailed(
                f"no taskqueue dev answers at {self._url} ({getattr(error, 'reason', error)}): "
                f"start one, taskqueue dev MODULE, or set {DEV_VARIABLE} to its address"
            ) from None


class _NotFound(CommandFailed):
    """There is no such object."""


def _plural(kind: str) -> str:
    return kind.partition(".")[0]


def _matches(one: Object, arguments: Sequence[str]) -> bool:
    """Return whether an object is selected by kubectl's options for that, by equality."""
    for text in arguments:
        option, _, selector = text.partition("=")
        for pair in selector.split(","):
            path, _, wanted = pair.partition("=")
            found: Any = one
            keys = path.split(".") if option == "--field-selector" else ["metadata", "labels", path]
            for key in keys:
                found = (found or {}).get(key)
            if str(found) != wanted:
                return False
    return True
