"""A `MemoryApi` as the operator's code asks for it: by path, as `kubernetes.client.ApiClient`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.api.printer_columns import TASK_COLUMNS
from taskqueue.dev.memory_api import MemoryApi, Object
from taskqueue.exact_json import decode_own
from taskqueue.kubernetes.client import TABLE, ApiError


class MemoryClient:
    """Serves the requests that the controller of Tasks makes; see `ApiClient` for their form."""

    def __init__(self, api: MemoryApi) -> None:
        self._api = api

    async def get(self, path: str, **params: str) -> Object:
        """Return an object."""
        plural, namespace, name, _ = _parts(path)
        return self._api.get(plural, namespace, name)

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
    ) -> Object:
        """Return an object, or a Table of it; or write the status of a Task."""
        plural, namespace, name, subresource = _parts(path)
        if method == "PATCH" and subresource == "status":
            return self._api.write_status(namespace, name, decode_own(body))
        if method == "GET":
            found = self._api.get(plural, namespace, name)
            return _as_table(found) if accept == TABLE else found
        raise ApiError(405, "MethodNotAllowed", f"{method} {path}: taskqueue dev has no such thing")


def _parts(path: str) -> tuple[str, str, str, str]:
    """Return plural, namespace, name and subresource of ``…/namespaces/<namespace>/<plural>/…``."""
    words = [*path.partition("/namespaces/")[2].split("/"), "", "", ""]
    return words[1], words[0], words[2], words[3]


def _as_table(task: Object) -> Object:
    cells: list[Any] = []
    for column in TASK_COLUMNS:
        value: Any = task
        for field in column.path.removeprefix(".").split("."):
            value = (value or {}).get(field)
        cells.append(value)
    return {
        "columnDefinitions": [{"name": column.name} for column in TASK_COLUMNS],
        "rows": [{"cells": cells, "object": {"metadata": task["metadata"]}}],
    }
